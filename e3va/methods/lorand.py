"""LoRand (Yin et al., "1% vs 100%", CVPR 2023): adapters x + U(GELU(D(x))) of matrices that are sums of low-rank ones.

Each of D and U is sum_b P_b K_b Q_b with kernels K_b of its own, as in the authors' public code. E3VA's tables print
1.20 M for Swin-B, which is this formula (1,203,456), and 1.31 M for Swin-L, which is not (1,799,040).
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

from ..layers import AdoptedLinear
from ..registry import METHODS
from ..surgery import replace
from .base import Method, choice, follow, integer, linears


class Branches(nn.Module):
    """y = x sum_b P_b K_b Q_b + b, for x (..., in), y (..., out).

    Shapes: `p` (branches, in, rank), `k` (branches, rank, rank), `q` (branches, rank, out). Every factor is kaiming
    with a = sqrt(5), i.e. uniform within +-1 / sqrt(its last dimension), the bias uniform within +-1 / sqrt(in).
    """

    def __init__(self, in_features, out_features, branches, rank):
        super().__init__()
        self.p = nn.Parameter(torch.empty(branches, in_features, rank))
        self.k = nn.Parameter(torch.empty(branches, rank, rank))
        self.q = nn.Parameter(torch.empty(branches, rank, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        for tensor, fan in ((self.p, rank), (self.k, rank), (self.q, out_features), (self.bias, in_features)):
            nn.init.uniform_(tensor, -1 / math.sqrt(fan), 1 / math.sqrt(fan))

    def forward(self, x):
        """By thin products: all branches side by side are one product of rank branches * rank."""
        inner = x @ self.p.transpose(0, 1).flatten(1)
        return inner @ (self.k @ self.q).flatten(0, 1) + self.bias


class LoRandLayer(nn.Module):
    """x + U(GELU(D(x))), for x (..., C)."""

    def __init__(self, width, mid, branches, rank):
        super().__init__()
        self.down = Branches(width, mid, branches, rank)
        self.up = Branches(mid, width, branches, rank)

    def forward(self, x):
        return x + self.up(F.gelu(self.down(x)))


class PrecededLinear(AdoptedLinear):
    """W adapter(x) + b, with a frozen W."""

    def __init__(self, old, adapter):
        super().__init__(old)
        self.adapter = adapter.to(old.weight)

    def forward(self, x):
        return F.linear(self.adapter(x), self.weight, self.bias)


@METHODS.register_module()
class LoRand(Method):
    """Low-rank adapters behind attention and MLP, in front of the residual addition; no init starts at the trunk.

    Refused for want of linears: ConvNeXts whose MLPs are convolutions of 1x1; mmsegmentation's ViT, whose attention
    torch computes past any layer in its place.

    Args:
        branches (int): branches of a projection.
        rank (int): size of their kernels.
        mid (int): width of the bottleneck. Default: half the width of the block.
        second (str): the second adapter stands 'after' the MLP, or 'before' it on the normed input, where early code
            of the authors is said to have had it.
        train_out_norms (bool): see `Method`.
    """

    starts_at_trunk = False

    def __init__(self, branches=2, rank=8, mid=None, second='after', train_out_norms=False):
        super().__init__(train_out_norms)
        self.branches = integer('branches', branches)
        self.rank = integer('rank', rank)
        self.mid = mid if mid is None else integer('mid', mid)
        self.second = choice('second', second, ('after', 'before'))

    def apply(self, trunk, parts):
        follow(trunk, parts, ('proj', 'fc2') if self.second == 'after' else ('proj',), self.make)
        if self.second == 'before':
            for name, old, _, _ in linears(trunk, parts, ('fc1',)):
                replace(trunk, name, PrecededLinear(old, self.make(old.in_features)))

    def make(self, width):
        mid = integer('mid', self.mid or width // 2, high=width)
        return LoRandLayer(width, mid, self.branches, integer('rank', self.rank, high=mid))
