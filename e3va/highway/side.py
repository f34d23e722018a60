"""The side network: adapters of all blocks, and the trunk's forward with the highway beside it (equations 7 and 8)."""
import copy
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..layers import served
from ..layers.recompute import FORMS, again, hold
from ..trunks.walk import refuse_options
from .adapter import trained_of
from .segment import MODES, Segment


class Side(nn.Module):
    """What the highway adds to a trunk; it lies in the trunk as its child `e3va`.

    Args:
        adapters: list of stages, each a list of blocks, each a ModuleDict of 'attn' and 'mlp' adapters.
        merges: {stage: module} of trainable copies of the trunk's own downsampling, empty when it is inherited.
    """

    def __init__(self, adapters, merges, arrangement, skip, join, tap, mode):
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleList(stage) for stage in adapters)
        self.merges = nn.ModuleDict({str(i): copy.deepcopy(merge).requires_grad_(True) for i, merge in merges.items()})
        self.arrangement, self.skip, self.join, self.tap, self.mode = arrangement, skip, join, tap, mode

    def beside(self, block):
        """Whether what is carried along is e - l: with the adapters' skip that is just the sum of their outputs.

        It holds where the adapters read what the trunk adds, which a block in training mode draws after the tap.
        """
        return self.skip and (self.tap == 'after' or not block.training)

    def add(self, name, c, pair, f, onwards):
        """Add to c, in place and but for `biases`, what comes of a branch's output f (equation 8).

        Args:
            onwards (Tensor): what the first of two stacked adapters hands on to the second; else None.

        Returns:
            what goes on into the second adapter where they are stacked, else None.
        """
        if self.arrangement == 'stacked' and name == 'attn':
            inner = pair['attn'](f)
            if self.skip:
                c += inner
            return self.onwards(inner, f)
        if name in pair:
            pair[name].add_to(c, f if onwards is None else f + onwards)
        return None

    def onwards(self, inner, f1):
        """Fig. 3: what the first adapter hands to the second."""
        return inner + f1 if self.skip else inner

    def biases(self, pairs):
        """The sum of what `add` leaves out, (C,): added once, as it is the same for every token."""
        names = ('attn', 'mlp') if self.arrangement == 'parallel' else ('mlp',)
        return sum(pair[name].up.bias for pair in pairs for name in names if name in pair)

    def gradients(self, pair, inputs, g, total):
        """(trained parameter, gradient) of a pair, from the gradient g of e, (tokens, C), and its sum over tokens.

        Args:
            inputs (dict): {name of a branch: its output}.
        """
        if self.arrangement == 'parallel' or 'attn' not in inputs:
            return [found for name, f in inputs.items() if name in pair for found in pair[name].gradients(f, g, total)]
        trained = trained_of(pair)
        if not trained:
            return []
        f1, f2 = inputs['attn'], inputs['mlp']
        with torch.enable_grad():
            z = f2 + self.onwards(pair['attn'](f1), f1)
            out = pair['mlp'](z) + (z if self.skip else 0)
        return list(zip(trained, torch.autograd.grad(out, trained, g.view_as(out))))


def highway(trunk, image, **options):
    """Stock trunk without gradient (eq. 7), highway with it (eq. 8), joined where the trunk gives something out.

    Args:
        image (Tensor): (B, 3, H, W), as for the stock trunk.

    Returns:
        what the stock trunk returns, same shapes.
    """
    refuse_options(trunk, options)
    mode = MODES[trunk.e3va.mode]
    if torch.compiler.is_compiling() and mode is not MODES['exact']:    # the compiler would keep what it likes
        return torch.compiler.disable(run)(trunk, image, mode)
    return run(trunk, image, mode)


def run(trunk, image, mode):
    """See `highway`."""
    side, first = trunk.e3va, partial(begin, trunk)
    if mode.inputs is None and len(side.stages) > 1 and torch.is_grad_enabled():
        # The largest maps belong to the first stage, and the image is smaller than any of them.
        outs, c, l, shape = checkpoint(first, image, MODES['exact'], use_reentrant=False)
    else:
        outs, c, l, shape = first(image, mode)
    for i in range(1, len(side.stages)):
        more, c, l, shape = stage(trunk, i, c, l, shape, mode)
        outs = outs + more
    return trunk.tuning.parts.pack(trunk, outs)


def begin(trunk, image, mode):
    """From the image to the end of the first stage, see `stage`."""
    parts = trunk.tuning.parts
    with torch.no_grad():
        l, shape = parts.stem(trunk, image)
    c = torch.zeros_like(l) if trunk.e3va.beside(parts.stages(trunk)[0][0]) else l
    return stage(trunk, 0, c.movedim(parts.AXIS, -1), l, shape, mode)


def stage(trunk, i, c, l, shape, mode):
    """Stage i of trunk and highway, with the merge behind it.

    Args:
        c (Tensor): the highway, as `Side.beside` says: e - l or e itself, (B, ..., C).
        l (Tensor): the trunk's tokens, with their channels where the family has them.

    Returns:
        (outs, c, l, shape): what the stage gives out, the two streams and their shape at the next stage.
    """
    parts, side, outs = trunk.tuning.parts, trunk.e3va, []
    taps, blocks, pairs = parts.taps(trunk), parts.stages(trunk)[i], [served(pair) for pair in side.stages[i]]
    form, beside, done = FORMS[mode.stream], side.beside(blocks[0]), 0

    def give_out(tap, e, held):
        outs.append(join(trunk, tap, shape, l, e, form, held))

    for end in sorted({j for at, j in taps if at == i and j != 'merged'} | {len(pairs) - 1}):
        e = held = None                                                 # frees the last segment's
        c, l = Segment(trunk, shape, pairs[done:end + 1], blocks[done:end + 1])(c, l, mode)
        own = c.movedim(-1, parts.AXIS)
        e, done = l + own if beside else own, end + 1
        held = hold(form, e)                                            # once, for the join and for the merge
        if (i, end) in taps:
            give_out((i, end), e, held)
    if i + 1 < len(side.stages) or (i, 'merged') in taps:
        inherited = parts.merges(trunk)[i]
        own = side.merges[str(i)] if str(i) in side.merges else inherited
        e = again(partial(merge, parts, own, shape), form, held, e, own.parameters())
        with torch.no_grad():
            merged = parts.merge(inherited, l, shape)
        c = (e - merged[0] if beside else e).movedim(parts.AXIS, -1)
        if not parts.INSIDE:                                            # else the next block merges the trunk's itself
            l, shape = merged
        if (i, 'merged') in taps:
            give_out((i, 'merged'), e, hold(form, e))
    return outs, c, l, shape


def join(trunk, tap, shape, l, e, form, held):
    """What the trunk gives out at a tap, from the trunk's tokens l and the highway's e."""
    if trunk.e3va.join == 'post':
        a, b = emit(trunk, tap, shape, l), emit(trunk, tap, shape, e)
        return a + b if isinstance(a, torch.Tensor) else [x + y for x, y in zip(a, b)]
    if trunk.e3va.join == 'sum' or form is FORMS['exact']:              # the norm keeps its input, as the merge does
        return emit(trunk, tap, shape, l + e if trunk.e3va.join == 'sum' else e)
    norms = [parameter for name in trunk.tuning.parts.out_norms(trunk)
             for parameter in trunk.get_submodule(name).parameters()]
    return again(partial(emit, trunk, tap, shape), form, held, e, norms)


def emit(trunk, tap, shape, x):
    return trunk.tuning.parts.emit(trunk, tap, x, shape)


def merge(parts, module, shape, x):
    return parts.merge(module, x, shape)[0]
