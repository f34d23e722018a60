"""Mona (Yin et al., "5% > 100%", CVPR 2025, arXiv 2408.08345): adapters of depth-wise convolutions.

Behind each residual addition x' = x + U GELU(F(D(s_1 LN(x) + s_2 x))), where F is f + the mean of depth-wise
convolutions of 3, 5 and 7, and then f + W f. The convolutions see the whole map, without windows and their padding.
"""
import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ..registry import METHODS
from ..trunks import used
from ..trunks.walk import by_blocks, reroute, through_branch
from .base import Method, integer, number

SIZES = (3, 5, 7)


class MonaLayer(nn.Module):
    """One adapter, for tokens (B, L, C) with the (height, width) of their patches, or maps (B, H, W, C).

    Initial values are those of the authors' code: D and U normal of 0.02 (truncated), s_1 1e-6, s_2 1, the
    convolutions as torch has them.

    Args:
        width (int): C.
        rank (int): r, channels inside.
        dropout (float): behind the GELU.
    """

    def __init__(self, width, rank, dropout):
        super().__init__()
        self.dropout = dropout
        self.norm_weight, self.norm_bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.s1, self.s2 = nn.Parameter(torch.full((width,), 1e-6)), nn.Parameter(torch.ones(width))
        self.down, self.down_bias = nn.Parameter(torch.empty(rank, width)), nn.Parameter(torch.zeros(rank))
        self.kernels = nn.ParameterList(torch.empty(rank, 1, size, size) for size in SIZES)
        self.kernel_biases = nn.ParameterList(torch.empty(rank) for _ in SIZES)
        self.mix, self.mix_bias = nn.Parameter(torch.empty(rank, rank)), nn.Parameter(torch.empty(rank))
        self.up, self.up_bias = nn.Parameter(torch.empty(width, rank)), nn.Parameter(torch.zeros(width))
        for matrix in (self.down, self.up):
            nn.init.trunc_normal_(matrix, std=0.02)
        for fan, *tensors in (*zip((9, 25, 49), self.kernels, self.kernel_biases), (rank, self.mix, self.mix_bias)):
            for tensor in tensors:
                nn.init.uniform_(tensor, -1 / math.sqrt(fan), 1 / math.sqrt(fan))

    def forward(self, x, shape):
        # s_1 inside the norm's own pair: so nothing is kept of what the norm gives.
        normed = F.layer_norm(x, x.shape[-1:], self.norm_weight * self.s1, self.norm_bias * self.s1)
        scaled = normed + x * self.s2
        inner = self.convolve(F.linear(scaled, self.down, self.down_bias), shape)
        inner = F.gelu(inner + F.linear(inner, self.mix, self.mix_bias))
        return x + F.linear(F.dropout(inner, self.dropout, self.training), self.up, self.up_bias)

    def convolve(self, f, shape):
        """f + mean of the convolutions on a map; prefix tokens (class, registers) have no place there and stay f."""
        if f.dim() == 4:
            return f + self.mean(f)
        height, width = shape[:2]                                       # a rotary table may stand behind them
        prefix, patches = f.split([f.shape[1] - height * width, height * width], dim=1)
        patches = patches + self.mean(patches.unflatten(1, (height, width))).flatten(1, 2)
        return torch.cat([prefix, patches], dim=1)

    def mean(self, maps):
        """The mean of the three convolutions, (B, H, W, r); as they are linear, by one with the mean of the kernels."""
        kernel = sum(F.pad(kernel, [(SIZES[-1] - kernel.shape[-1]) // 2] * 4) for kernel in self.kernels) / len(SIZES)
        bias = sum(self.kernel_biases) / len(SIZES)
        out = F.conv2d(maps.permute(0, 3, 1, 2), kernel, bias, padding=SIZES[-1] // 2, groups=len(kernel))
        return out.permute(0, 2, 3, 1)


@METHODS.register_module()
class Mona(Method):
    """Two adapters a block, behind the attention's and the MLP's residual addition (ConvNeXt: one, behind the block).

    Refused: timm's ViTs that drop patches in training, which leaves no map to convolve.

    On a plain ViT the class and register tokens pass all of an adapter but its convolutions.

    The formula counts (2 r + 5) C + r^2 + 88 r an adapter, for rank 64 3,667,456 on Swin-B and 5,267,712 on Swin-L; the
    printed 4.16 M and 5.08 M are not reproduced (the paper does not say what else they hold).

    Args:
        rank (int): channels inside.
        dropout (float): behind the GELU.
        train_out_norms (bool): see `Method`.
    """

    starts_at_trunk = False
    refused = dict(hiera='its tokens lie in the order in which they are pooled, and are no map to convolve',
                   hivit='its first stages hold each patch in pieces, and are no map to convolve')

    def __init__(self, rank=64, dropout=0.1, train_out_norms=False):
        super().__init__(train_out_norms)
        self.rank = integer('rank', rank)
        self.dropout = number('dropout', dropout, 0, 1)

    def apply(self, trunk, parts):
        if not isinstance(getattr(trunk, 'patch_drop', None), (nn.Identity, type(None))):
            raise ValueError('Mona convolves the whole map, but this trunk drops patches in training: build it with '
                             'patch_drop_rate=0')
        for block in (block for stage in used(trunk) for block in stage):
            like = parts.like(block)
            rank = integer('rank', self.rank, high=like.numel())
            block.mona = nn.ModuleDict({name: MonaLayer(like.numel(), rank, self.dropout)
                                        for name in parts.names(block)}).to(like)
        reroute(trunk, parts, partial(by_blocks, through))


def through(parts, stage, j, block, x, shape):
    """The stock block with an adapter behind each branch."""
    for name in parts.names(block):
        x = through_branch(parts, name, block, x, shape)
        x = block.mona[name](x.movedim(parts.AXIS, -1), parts.grid(block, shape)).movedim(-1, parts.AXIS)
    return x
