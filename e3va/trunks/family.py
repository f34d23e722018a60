"""The record of a family of trunks: what its file defines, and the defaults for the rest."""
import dataclasses
from typing import Callable, Optional

from .role import stock


@dataclasses.dataclass(frozen=True)
class Branch:
    """A residual branch of a block, x' = skip(y) + scale(drop(run(y))) with y = front(x).

    What a branch does to the stream besides counts as its output, so that the outputs add up to x': what front changes,
    and skip where it keeps the shape.

    Attributes:
        run: y -> what the branch gives, its layer scale included where that is in front of DropPath. None: the front
            is all that there is, x' = y, and adds to skip(x).
        drop: its DropPath (or Identity), or None.
        skip: y -> what it is added to, where that is not y itself: a block that pools, changes the width, or scales.
        front: x -> y, what stands on the stream in front of the branch, y - x not being a branch of its own: a
            convolution of positions.
        scale: its layer scale where that is behind DropPath.
    """

    run: Optional[Callable]
    drop: Optional[Callable] = None
    skip: Optional[Callable] = None
    front: Optional[Callable] = None
    scale: Optional[Callable] = None

    @classmethod
    def around(cls, run, drop):
        """A branch whose run calls its DropPath itself, as its last step (OpenMMLab's attention and MLP)."""
        def without(x):
            if drop is None or not drop.training:
                return run(x)
            drop.training = False
            try:
                return run(x)
            finally:
                drop.training = True
        return cls(without, drop)


class Family:
    """A family by the names in its file, which stand before the defaults here.

    `trunks/__init__` says what each of them is. Most files define CLASSES, BLOCKS, ROLES, `stem` and `branches`.
    """

    ENTRY_OF = 'forward'            # the method that the class must not have overridden
    BLOCKS = ()                     # stock classes of the blocks; empty: whatever the stock trunk holds
    HEAD = None
    BRANCHES = ('attn', 'mlp')
    AXIS = -1
    INSIDE = False                  # merges are skips of the next stage's first block, which does them itself
    IN_PLACE = None                 # pattern of layers whose outputs the trunk changes in place
    SIZES = {}                      # options by which the constructor lets images have any size
    # Why VPT cannot put prompts among the tokens; None where it can ('windows': in each of them).
    NO_PROMPTS = 'its blocks do not attend to a plain sequence of tokens, in which prompts would have a place'

    def __init__(self, file):
        self.__doc__ = file.__doc__
        self.__dict__.update({name: value for name, value in vars(file).items() if not name.startswith('_')})

    def owns(self, trunk):
        return stock(trunk, self.CLASSES, self.ENTRY_OF) and all(
            not self.BLOCKS or stock(block, self.BLOCKS) for stage in self.stages(trunk) for block in stage)

    def ENTRY(self, trunk):
        return 'forward'

    def stages(self, trunk):
        return [list(stage.blocks) for stage in trunk.stages] if hasattr(trunk, 'stages') else [list(trunk.blocks)]

    def merges(self, trunk):
        if not self.INSIDE:
            return {}
        return {i: blocks[0] for i, blocks in enumerate(self.stages(trunk)[1:])}

    def merge(self, module, x, shape):
        if not self.INSIDE:
            return module(x), shape
        return onto(self.branches(module, shape)[self.names(module)[0]], x), shape

    def taps(self, trunk):
        stages = self.stages(trunk)
        if len(stages) > 1:
            return [(i, len(blocks) - 1) for i, blocks in enumerate(stages) if i in self.indices(trunk)]
        return [(0, i) for i in range(len(stages[0])) if i in self.indices(trunk)]

    def indices(self, trunk):
        """Stages, or blocks where there is one stage, whose output is given out."""
        return trunk.out_indices

    def out_norms(self, trunk):
        return []

    def pack(self, trunk, outs):
        return tuple(outs)

    def like(self, block):
        """A parameter of the width, type and device of what a block gives out, (C,)."""
        return next(getattr(block, name) for name in ('norm2', 'norm1', 'norm') if hasattr(block, name)).weight

    def size(self, trunk):
        """The (height, width) that images must have; None where they may have any."""
        embed = getattr(trunk, 'patch_embed', None)
        strict = getattr(embed, 'strict_img_size', False) and embed.img_size
        return tuple(embed.img_size) if strict else None

    def names(self, block):
        """The branches that a block has, of 'attn' and 'mlp', in their order."""
        return self.BRANCHES

    def grid(self, block, shape):
        """`shape` as it is behind a block, for who looks at the map: its height and width come first."""
        return shape

    def attend(self, block, x, shape, tap='before'):
        return self.read('attn', block, x, shape, tap)

    def feed(self, block, x, shape, tap='before'):
        return self.read('mlp', block, x, shape, tap)

    def run(self, block, x, shape):
        """x behind a block, as the stock trunk calls it where the family's file says how."""
        for name in self.names(block):
            x = self.through(name, block, x, shape)
        return x

    def through(self, name, block, x, shape):
        """x behind a branch, for those who do not ask for the branch's own output."""
        return (self.attend if name == 'attn' else self.feed)(block, x, shape, None)[1]

    def read(self, name, block, x, shape, tap='before'):
        """(f, x'): a branch's output before or after its DropPath, and what the block has behind it.

        With the tap None only x' is asked for.
        """
        branch = self.branches(block, shape)[name]
        y = x if branch.front is None else branch.front(x)
        if branch.run is None:
            return (y - onto(branch, x) if tap else None), y
        f = branch.run(y)
        moved = f if branch.drop is None else branch.drop(f)
        if branch.scale is not None:
            dropped, moved = moved is not f, branch.scale(moved)
            f = branch.scale(f) if dropped and tap == 'before' else moved
        base = onto(branch, y)
        f = moved if tap == 'after' else f
        if tap and base is not x and base.shape == x.shape:
            f = f + (base - x)
        return f, base + moved

    def beside(self, name, block, x, shape):
        """The stream beside a branch: x, or what a block that pools or changes the width makes of it."""
        if not hasattr(self, 'branches'):
            return x
        base = onto(self.branches(block, shape)[name], x)
        return x if base.shape == x.shape else base


def onto(branch, x):
    return x if branch.skip is None else branch.skip(x)


class OfTimm(Family):
    """A family of timm's models, whose classifier is part of the module.

    `TimmTrunk` gives maps from `forward`; plain timm models put their head behind `forward_features`.
    """

    ENTRY_OF = 'forward_features'
    HEAD = r'head(\..*)?'
    NORMS = ('norm', 'fc_norm')     # the last norms, where the trunk has them

    def ENTRY(self, trunk):
        return 'forward' if self.gives_maps(trunk) else 'forward_features'

    def gives_maps(self, trunk):
        return hasattr(trunk, 'out_indices')

    def indices(self, trunk):
        if self.gives_maps(trunk):
            return trunk.out_indices
        stages = self.stages(trunk)
        return [len(stages if len(stages) > 1 else stages[0]) - 1]

    def out_norms(self, trunk):
        if self.gives_maps(trunk):
            return [f'norm{i}' for i in trunk.out_indices]
        modules = dict(trunk.named_modules())
        return [name for name in self.NORMS if name in modules and any(True for _ in modules[name].parameters())]

    def emit(self, trunk, tap, x, shape):
        if not self.gives_maps(trunk):
            return self.end(trunk, x)
        i = tap[0] if len(self.stages(trunk)) > 1 else tap[1]
        x = self.spread(trunk, x, self.grid(self.stages(trunk)[tap[0]][tap[1]], shape))
        return getattr(trunk, f'norm{i}')(x).permute(0, 3, 1, 2).contiguous()

    def spread(self, trunk, x, shape):
        """Tokens as a map with channels last, (B, h, w, C)."""
        return x.movedim(self.AXIS, -1)

    def end(self, trunk, x):
        """What `forward_features` does behind the last block."""
        return trunk.norm(x) if hasattr(trunk, 'norm') else x

    def pack(self, trunk, outs):
        return tuple(outs) if self.gives_maps(trunk) else outs[0]
