"""AdaptFormer (Chen et al., NeurIPS 2022, arXiv 2205.13535): x' = x + MLP(LN(x)) + s U ReLU(D x).

The input of the bottleneck is x itself, as in the authors' code, whose layer norm there is off ("none").

With `bits` Bi-AdaptFormer (Jie et al., ICCV 2023, see `layers.quantised`): D and U in 1, 2 or 4 bits, U not zero at the
start, no biases.
"""
from functools import partial

from torch import nn

from ..layers import Bottleneck, served
from ..layers.quantised import BITS
from ..registry import METHODS
from ..trunks import used
from ..trunks.walk import by_blocks, reroute, through_branch
from .base import Method, choice, integer, number


@METHODS.register_module()
class AdaptFormer(Method):
    """Bottlenecks beside the MLP of each block, on the un-normed input of the branch, outside its DropPath.

    Down is kaiming, up and the biases are zero, so training starts at the trunk (with 32 bits).

    Args:
        rank (int): width of the bottleneck. 64 in the paper; 8 in the tables on VTAB (ViT-B: 156,768 parameters).
        scale (float): s.
        dropout (float): inside the bottleneck; 0.1 in the paper's code.
        bias (bool): of both projections. Pear counts none (rank 8 on ViT-B: 147,456). Default: with 32 bits.
        branches (sequence of str): 'mlp', or ('attn', 'mlp') for one beside the attention too (E3VA's tables; Swin-B,
            rank 64: 3,107,328). ConvNeXt has one branch, which both mean.
        bits (int): of each entry of the projections: 1 (Bi-AdaptFormer), 2, 4, or 32, floats. A saved delta has these
            bits: rank 32 in 1 bit on ViT-B is 73,920 bytes.
        train_out_norms (bool): see `Method`.
    """

    unit = Bottleneck

    def __init__(self, rank=64, scale=0.1, dropout=0.1, bias=None, branches=('mlp',), bits=32,
                 train_out_norms=False):
        super().__init__(train_out_norms)
        self.rank = integer('rank', rank)
        self.scale = number('scale', scale)
        self.dropout = number('dropout', dropout, 0, 1)
        self.bits = choice('bits', integer('bits', bits), BITS)
        self.bias = bits == 32 if bias is None else bias
        if self.bias and bits < 32:
            raise ValueError(f'bias={bias!r} with bits={bits}: quantised projections have no biases; leave bias out')
        self.starts_at_trunk = bits == 32
        self.branches = [choice('branches', name, ('attn', 'mlp'))
                         for name in ((branches,) if isinstance(branches, str) else branches)]
        if not self.branches:
            raise ValueError("branches is empty: name 'attn', 'mlp' or both")

    def apply(self, trunk, parts):
        for block in (block for stage in used(trunk) for block in stage):
            like, names = parts.like(block), parts.names(block)
            names = [name for name in names if name in self.branches] or names
            block.adaptformer = nn.ModuleDict({name: self.make(like.numel()) for name in names}).to(like)
        reroute(trunk, parts, partial(by_blocks, through))

    def make(self, width):
        return Bottleneck(width, integer('rank', self.rank, high=width), 'relu', self.dropout, self.bias,
                          'lora_kaiming', self.scale, self.bits)


def through(parts, stage, j, block, x, shape):
    """The stock block with the bottlenecks beside its branches."""
    units = served(block.adaptformer)
    for name in parts.names(block):
        behind = through_branch(parts, name, block, x, shape)
        if name in units:
            x = parts.beside(name, block, x, shape)
            behind = behind + units[name](x.movedim(parts.AXIS, -1)).movedim(-1, parts.AXIS)
        x = behind
    return x
