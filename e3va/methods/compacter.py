"""Compacter (Karimi Mahabadi et al., NeurIPS 2021, arXiv 2106.04647): adapters of sums of Kronecker products.

Each matrix of x + U(GELU(D(x))) is sum_i A_i kron (s_i t_i^T), i = 1 .. n, and the n matrices A_i are one set for all
adapters of the net.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

from ..registry import METHODS
from ..trunks import used
from ..trunks.walk import checkpoint_once
from .base import Method, follow, integer, role_names


class Rule(nn.Module):
    """The shared A_i, (n, n, n): normal of 1e-4, as in the public code. Not learned, they are a buffer."""

    def __init__(self, n, learned):
        super().__init__()
        rule = 1e-4 * torch.randn(n, n, n)
        if learned:
            self.rule = nn.Parameter(rule)
        else:
            self.register_buffer('rule', rule)


class Kronecker(nn.Module):
    """y = x H + b with H = sum_i A_i kron (s_i t_i^T), (in, out), for x (..., in).

    Shapes: `s` (n, in / n), `t` (n, out / n). Both are glorot uniform with a gain of sqrt(2), each s_i and t_i a matrix
    of one column or row; the bias is zero.
    """

    def __init__(self, in_features, out_features, n, bias):
        super().__init__()
        self.s = nn.Parameter(torch.empty(n, in_features // n))
        self.t = nn.Parameter(torch.empty(n, out_features // n))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        for tensor in (self.s, self.t):
            bound = math.sqrt(12 / (tensor.shape[1] + 1))
            nn.init.uniform_(tensor, -bound, bound)

    def forward(self, x, rule):
        """(A kron s t^T) acts on x, read as n parts of in / n, by s inside the parts and by A between them."""
        inner = F.linear(x.unflatten(-1, (len(rule), -1)), self.s)      # (..., part, i)
        inner = torch.einsum('...pi,ipq->...qi', inner, rule)
        out = (inner @ self.t).flatten(-2)
        return out if self.bias is None else out + self.bias


class CompacterLayer(nn.Module):
    """x + U(GELU(D(x))), for x (..., C)."""

    def __init__(self, width, rank, n, bias, shared):
        super().__init__()
        self.down = Kronecker(width, rank, n, bias)
        self.up = Kronecker(rank, width, n, bias)
        self.shared = (shared,)             # in a tuple it is no child: one entry in the state_dict, one after a copy

    def forward(self, x):
        rule = self.shared[0].rule
        return x + self.up(F.gelu(self.down(x, rule)), rule)


@METHODS.register_module()
class Compacter(Method):
    """Compacter behind attention and MLP; with `roles=('fc2',)` it is Compacter++, behind the MLP alone.

    It starts at the trunk up to rounding: the small A_i stand in an adapter twice, so it adds about 1e-8 of its input.

    Refused for want of linears: ConvNeXts whose MLPs are convolutions of 1x1; 'proj' on mmsegmentation's ViT, whose
    attention torch computes past any layer in its place.

    Args:
        rank (int): width of the bottleneck, a multiple of n.
        n (int): number and size of the A_i; it divides the block's width.
        bias (bool): of both projections. Pear's row has none (rank 48 on ViT-B: 39,168 beside the n^3 of the A_i).
        learn_rule (bool): train the A_i, as the paper does.
        roles (sequence of str): 'proj': behind the attention; 'fc2': behind the MLP. On ConvNeXt both are the block's
            last linear, which gets one adapter.
        train_out_norms (bool): see `Method`.
    """

    def __init__(self, rank=48, n=4, bias=True, learn_rule=True, roles=('proj', 'fc2'), train_out_norms=False):
        super().__init__(train_out_norms)
        self.rank, self.n = integer('rank', rank), integer('n', n)
        self.bias, self.learn_rule = bias, learn_rule
        self.roles = role_names(roles)

    def apply(self, trunk, parts):
        shared = Rule(self.n, self.learn_rule).to(parts.like(used(trunk)[0][0]))
        follow(trunk, parts, self.roles, lambda width: self.make(width, shared))
        trunk.compacter = shared
        checkpoint_once(trunk, parts)

    def make(self, width, shared):
        integer('rank', self.rank, high=width)
        if width % self.n or self.rank % self.n:
            raise ValueError(f'n must divide the width of a block and the rank: n={self.n}, width {width}, '
                             f'rank={self.rank}')
        return CompacterLayer(width, self.rank, self.n, self.bias, shared)
