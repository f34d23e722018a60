"""MoRA (Jiang et al., 2024, arXiv 2405.12130): W x + g(M f(x)) with a square M in place of LoRA's two thin matrices.

f compresses x to the size of M and g repeats the outcome; neither has parameters. M is zero, so training starts at the
trunk, and there is no scale.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

from ..layers import SlicedLinear
from ..registry import METHODS
from ..surgery import replace
from .base import Method, choice, integer, layers, places


class MoRALinear(SlicedLinear):
    """W x + g(M f(x)) on slices of the outputs, each with a square of its own.

    x is read as groups of `size` numbers; the last is filled up with the first numbers of x.
    'share' (equation 6): the groups are added, and what M makes of the sum is repeated.
    'rope' (equation 9): each group is turned by its number as positions are in RoPE; M acts on each, and the outcomes
    stand one behind the other, repeated where more outputs are wanted.

    Shapes: `square` (slices, size, size); x (..., in).
    """

    def __init__(self, old, size, variant, slices, of):
        super().__init__(old, slices, of)
        self.variant = variant
        self.square = nn.Parameter(old.weight.new_zeros(len(slices), size, size))
        if variant == 'rope':
            groups = -(-self.in_features // size)
            angle = torch.outer(torch.arange(groups), 10000 ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
            for name, value in (('cos', angle.cos()), ('sin', angle.sin())):
                self.register_buffer(name, value.to(old.weight), persistent=False)

    def compress(self, x):
        """(..., in) -> (..., groups, size); one group where they are added."""
        size = self.square.shape[-1]
        x = torch.cat([x, x[..., :-self.in_features % size]], dim=-1).unflatten(-1, (-1, size))
        if self.variant == 'share':
            return x.sum(-2, keepdim=True)
        half = x.chunk(2, dim=-1)
        return x * self.cos.to(x.dtype) + torch.cat([-half[1], half[0]], dim=-1) * self.sin.to(x.dtype)

    def added(self, x):
        """g(M f(x)) for each slice, (..., width)."""
        x = self.compress(x)
        outs = [F.linear(x, square).flatten(-2) for square in self.square]
        return [out.repeat(*[1] * (out.dim() - 1), -(-self.width // out.shape[-1]))[..., :self.width] for out in outs]

    def deltas(self):
        """What it does to the unit vectors, as it is linear."""
        return torch.stack([out.T for out in self.added(torch.eye(self.in_features).to(self.square))])

    def forward(self, x):
        return self.add(F.linear(x, self.weight, self.bias), self.added(x))


@METHODS.register_module()
class MoRA(Method):
    """Squares of high rank added to linears, with as many parameters as LoRA of a given rank at most.

    Refused for want of linears: ConvNeXts whose MLPs are convolutions of 1x1; on mmsegmentation's ViT all roles but
    'fc1' and 'fc2', as torch computes its attention past any layer in its place.

    Args:
        rank (int): of that LoRA; the size of M is sqrt((in + out) rank), rounded ('rope': down to an even number).
        variant (str): 'rope', which the authors take for small ranks (8: M of 110 on ViT-B, 290,400 parameters), or
            'share', for large ones (M of 111, 295,704).
        size (int): of M, in place of the one that follows from `rank`. 112 is what the row in Pear's table counts.
        roles (sequence of str): the linears that are adapted: 'q', 'k', 'v', 'proj', 'fc1', 'fc2'.
            Default: q and v; in a trunk of no known family all but the classifier's.
        targets (str or sequence of str): the linears that are adapted, in any module; see `LoRA`.
        train_out_norms (bool): see `Method`.
    """

    mergeable = True
    linear = {'square': 0.}
    needs_family = False

    def __init__(self, rank=8, variant='rope', size=None, roles=None, train_out_norms=False, targets=None):
        super().__init__(train_out_norms)
        self.rank = integer('rank', rank)
        self.variant = choice('variant', variant, ('rope', 'share'))
        self.size = size if size is None else integer('size', size)
        if variant == 'rope' and self.size and self.size % 2:
            raise ValueError(f"variant='rope' turns pairs, so size must be even, not {size}")
        self.roles, self.targets = places(roles, targets)

    def apply(self, trunk, parts):
        for name, old, slices, of in layers(trunk, parts, self):
            size = self.size_for(old.in_features, old.out_features // of)
            replace(trunk, name, MoRALinear(old, size, self.variant, slices, of))

    def size_for(self, inputs, outputs):
        """Size of M for a weight; ValueError if it is larger than the weight."""
        if self.size:
            return integer('size', self.size, high=min(inputs, outputs))
        size = int(math.sqrt((inputs + outputs) * self.rank) + 0.5)
        if size > min(inputs, outputs):
            raise ValueError(f'rank={self.rank} asks for a square of {size} in a weight of {outputs} x {inputs}: give '
                             'a smaller rank, or size')
        return size // 2 * 2 if self.variant == 'rope' else size
