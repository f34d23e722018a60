"""DMLoRA (Fang et al., "Dropout Mixture Low-Rank Adaptation for Visual PEFT", ECCV 2024; no public code).

MixLoRA (Eq. 2) trains W + s RR(B) RR(A): of n down factors A and n up factors B one each is drawn at random (RR), anew
at every step. Mixture Dropout halves n again and again; evaluation takes mean(B) mean(A); the 2-stage learning scalar
then trains one s for each adapted matrix (section 3.3). This file says what happens; `DMLoRAHook` says when.

Where the paper is silent: A and B are drawn independently of each other, of q and v and of the layers, once an
iteration; they are halved independently as well; every A_i is drawn by LoRA's kaiming, every B_i is zero.
"""
import math
from collections import Counter

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..layers import DeltaConv2d, SlicedLinear
from ..methods.base import Method, choice, integer, layers, number, places
from ..methods.lora import rank_for
from ..registry import METHODS
from ..surgery import replace

DRAW, HALVE, AGAIN = 0, 1, 2 ** 62                                      # streams of random numbers; HALVE has more


class Branches(nn.Module):
    """The n branches of one factor, A_1 ... A_n or B_1 ... B_n: in training the drawn one, else their mean.

    A branch that is not drawn is in no graph: it costs no product and no activation, and its gradient is None, so that
    an optimizer leaves it and its moments alone.

    Parameters: '0' to 'n - 1', of one shape.
    """

    def __init__(self, branches):
        super().__init__()
        self.hold(branches)

    def __len__(self):
        return len(self._parameters)

    @property
    def all(self):
        """The branches as a list."""
        return list(self._parameters.values())

    def hold(self, branches):
        """Have these branches and no others, numbered anew."""
        branches = list(branches)
        self._parameters.clear()
        for i, branch in enumerate(branches):
            self.register_parameter(str(i), branch)
        self.choose(0)

    def choose(self, i):
        """Let branch `i` be the drawn one."""
        # A tensor, not its number: for each number torch.compile would compile anew.
        self.__dict__['drawn'] = self._parameters[str(i)]

    @property
    def undrawn(self):
        """What this step leaves alone (see `trunks.sampled`)."""
        return [branch for branch in self.all if branch is not self.drawn]

    def mean(self):
        return self.all[0] if len(self) == 1 else torch.stack(self.all).mean(0)

    def forward(self):
        return self.drawn if self.training else self.mean()

    def _apply(self, *args, **options):                                 # .to(): may make new parameters
        i = next(i for i, branch in enumerate(self.all) if branch is self.drawn)
        super()._apply(*args, **options)
        self.choose(i)
        return self


class MixLoRALinear(SlicedLinear):
    """W + s RR(B) RR(A) on some of the `of` equal slices of the outputs (Eq. 2); s mean(B) mean(A) in evaluation.

    Each adapted slice has branches and a scale of its own. B = 0, so training starts at the trunk.

    Shapes: a branch of `down` (r, in), of `up` (out / of, r), `scale` (slices,); x (..., in).

    Args:
        downs, ups (int): branches of A and of B.
    """

    def __init__(self, old, rank, downs, ups, scale, slices=(0,), of=1):
        super().__init__(old, slices, of)
        mix(self, len(slices), (rank, old.in_features), downs, (self.width, rank), ups, scale)

    def deltas(self):
        return [scale * up.mean() @ down.mean() for scale, up, down in zip(self.scale, self.up, self.down)]

    def forward(self, x):
        """By thin products, those of one LoRA whatever n is; no copy of a factor is made, which autograd would keep."""
        return self.add(F.linear(x, self.weight, self.bias), [
            F.linear(scale * F.linear(x, down()), up()) for down, scale, up in zip(self.down, self.scale, self.up)])


class MixLoRAConv2d(DeltaConv2d):
    """The same of a convolution; see `DeltaConv2d`.

    Shapes: a branch of `down` (r, in / groups * h * w), of `up` (out, r / groups), `scale` (1,); x (B, in, H, W).
    """

    slices, of = (0,), 1                                                # as of `MixLoRALinear`: the whole layer

    def __init__(self, old, rank, downs, ups, scale):
        super().__init__(old)
        mix(self, 1, (rank, old.weight[0].numel()), downs, (old.out_channels, rank // old.groups), ups, scale)

    def factors(self):
        return [(down(), scale * up(), 0.) for scale, down, up in zip(self.scale, self.down, self.up)]

    def delta(self):
        return sum(self.product(down.mean(), scale * up.mean())
                   for scale, down, up in zip(self.scale, self.down, self.up))


def mix(layer, count, down_shape, downs, up_shape, ups, scale):
    """Give a layer branches and scales for `count` slices: A drawn by LoRA's kaiming, B zero."""
    like = dict(dtype=layer.weight.dtype, device=layer.weight.device)

    def down():
        return nn.Parameter(nn.init.kaiming_uniform_(torch.empty(down_shape, **like), a=math.sqrt(5)))

    def up():
        return nn.Parameter(torch.zeros(up_shape, **like))

    layer.down = nn.ModuleList(Branches(down() for _ in range(downs)) for _ in range(count))
    layer.up = nn.ModuleList(Branches(up() for _ in range(ups)) for _ in range(count))
    layer.scale = nn.Parameter(torch.full((count,), float(scale), **like), requires_grad=False)


def mixtures(model):
    """Every `Branches` of a model, in its order."""
    return [module for module in model.modules() if isinstance(module, Branches)]


def scaled(model):
    """{name: layer} of the adapted layers of a model."""
    return {name: module for name, module in model.named_modules()
            if isinstance(module, (MixLoRALinear, MixLoRAConv2d))}


def random_bits(seed, step, stream, count):
    """`count` 64-bit integers, a function of the arguments alone: a counter-based generator has no state to save."""
    key = np.array([seed, step], dtype=np.uint64)
    return np.random.Philox(key=key, counter=stream << 192).random_raw(count)


def draw(model, iteration, seed=0, stream=DRAW):
    """Draw the branches that one step trains: uniform, independent, and the same wherever seed and iteration are.

    Args:
        model (nn.Module): a trunk, or a model with one.
        iteration (int): number of the step.
        seed (int): of the run.
        stream (int): DRAW, or AGAIN for a second draw in the same step.
    """
    found = mixtures(model)
    for bits, branches in zip(random_bits(seed, iteration, stream, len(found)), found):
        branches.choose(int(bits) % len(branches))
    for module in model.modules():
        if hasattr(module, 'tuning'):
            module.tuning.hooked = True


def halve(model, how, seed=0):
    """Drop half of all branches (section 3.2, Mixture Dropout).

    Args:
        how (str): 'dropout': of each factor a random half stays as it is; 'average': of each two their mean stays.
        seed (int): of the run.

    Returns:
        list of (gone, kept): the parameters that are gone; `kept` is the one that has become the mean with it, or None.
    """
    gone = []
    for place, branches in enumerate(mixtures(model)):
        old = branches.all
        if len(old) == 1:
            continue                                                    # a shared factor
        if how == 'average':
            for kept, other in zip(old[::2], old[1::2]):
                kept.data = (kept.data + other.data) / 2
                gone.append((other, kept))
            branches.hold(old[::2])
        else:
            order = np.argsort(random_bits(seed, len(old), HALVE + place, len(old)))
            stay = set(order[:len(old) // 2].tolist())
            gone += [(branch, None) for i, branch in enumerate(old) if i not in stay]
            branches.hold(branch for i, branch in enumerate(old) if i in stay)
    return gone


def average(model):
    """Replace the branches of every factor by their mean: what evaluation takes, as one LoRA. Returns as `halve`."""
    gone = []
    for branches in mixtures(model):
        kept, *others = branches.all
        kept.data = branches.mean().detach().clone()
        gone += [(other, kept) for other in others]
        branches.hold([kept])
    return gone


def resize(branches, count):
    """Have `count` branches, the first ones and empty new ones. Returns the parameters that are gone."""
    old = branches.all
    new = [nn.Parameter(torch.zeros_like(old[0]), requires_grad=old[0].requires_grad) for _ in range(count - len(old))]
    branches.hold(old[:count] + new)
    return old[count:]


def given_otherwise(model, names):
    """[(place, `Branches`, count)] of those of which a state dict with these names has another number of branches."""
    counts = Counter(name.rpartition('.')[0] for name in names)
    return [(place, branches, counts[place]) for place, branches in model.named_modules()
            if isinstance(branches, Branches) and counts[place] not in (0, len(branches))]


def check_start(model, names, source):
    """ValueError for weights of a run that has dropped branches: a new run would be without them."""
    for place, branches, count in given_otherwise(model, names):
        raise ValueError(f'{source} has {count} branches in {place}, and a new run starts with {len(branches)}: give '
                         'stock weights (e.g. of e3va.merge), or resume that run')


@METHODS.register_module()
class DMLoRA(Method):
    """Low-rank additions in n branches, to linears of the attention or the MLP.

    Without a runner call `draw(model, step)` before each step, with any optimizer that leaves what has no gradient
    alone, and `halve` and `average` when it is time; under DDP see `DMLoRAHook` and `DMLoRAOptimWrapper`.

    Args:
        rank (int): r, 8 in the paper (ViT-B: 294,912 parameters once the branches are one).
        branches (int): n at the start, 4 to 32 in the paper.
        scale (float): s, 1 or 10 in the paper.
        roles (sequence of str): the linears that are adapted: 'q', 'k', 'v', 'proj', 'fc1', 'fc2'.
            Default: q and v; in a trunk of no known family see `LoRA`.
        targets (str or sequence of str): the linears and convolutions that are adapted, in any module; see `LoRA`.
        share (str): 'up' or 'down': this factor is a single branch (schemes C and D).
        learn_scale (bool): the scales train from the start, together with the branches (the 1-stage variant).
        train_out_norms (bool): see `Method`.
    """

    mergeable = True
    linear = {'scale': 0.}
    needs_family = False
    adapted = (nn.Linear, nn.Conv2d)
    hook = 'e3va.DMLoRAHook'

    def __init__(self, rank=8, branches=8, scale=1., roles=None, share=None, learn_scale=False,
                 train_out_norms=False, targets=None):
        super().__init__(train_out_norms)
        self.rank = integer('rank', rank)
        self.branches = integer('branches', branches)
        self.scale = number('scale', scale, low=1e-9)                   # at 0 nothing would ever get a gradient
        self.roles, self.targets = places(roles, targets)
        self.share = choice('share', share, (None, 'up', 'down'))
        self.learn_scale = choice('learn_scale', learn_scale, (True, False))

    def apply(self, trunk, parts):
        downs, ups = (1 if self.share == name else self.branches for name in ('down', 'up'))
        for name, old, slices, of in layers(trunk, parts, self):
            rank = rank_for(self, trunk, name, old, of)
            replace(trunk, name, MixLoRAConv2d(old, rank, downs, ups, self.scale) if isinstance(old, nn.Conv2d)
                    else MixLoRALinear(old, rank, downs, ups, self.scale, slices, of))
            trunk.get_submodule(name).scale.requires_grad_(self.learn_scale)

    def expect(self, trunk, given):
        """A run drops branches: have as many as come; not from init_cfg, with which a new run starts."""
        if hasattr(trunk, '_params_init_info'):                         # while mmengine initialises the model
            check_start(trunk, given, 'init_cfg')
        for _, branches, count in given_otherwise(trunk, given):
            resize(branches, count)
