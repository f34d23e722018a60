"""FacT (Jie and Deng, AAAI 2023, arXiv 2212.03145): one decomposition of the changes of all weights of the net.

The weights of a block are cut into d x d pieces: q, k, v, proj one each, fc1 and fc2 four each (12 L in all). The
change of piece j is s U C_j V, with U (d, r) and V (r, d) shared by the whole net. FacT-TT (tensor train) learns each
C_j, (r, r). In FacT-TK (Tucker) C_j = sum_k P_jk C_k, from a core C (r, r, r) and P (12 L, r) that are shared too.

Where the width changes from stage to stage (Swin, ConvNeXt), the weights of a width are a net of their own: U, V, C and
P are one set for each width d.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

from ..layers import SlicedLinear
from ..registry import METHODS
from ..surgery import replace
from ..trunks.walk import checkpoint_once
from .base import Method, choice, integer, linears, number, role_names


class Factors(nn.Module):
    """What the weights of one width share.

    Shapes: `u` (r, d), `v` (d, r); for Tucker the core `c` (r, r, r) and `p` (r, pieces). V is zero, so training starts
    at the trunk; U is uniform in +-1/sqrt(d), C and P are xavier, as in the authors' code.
    """

    def __init__(self, width, rank, pieces):
        super().__init__()
        self.u = nn.Parameter(torch.empty(rank, width).uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width)))
        self.v = nn.Parameter(torch.zeros(width, rank))
        if pieces:
            self.c = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, rank, rank)))
            self.p = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, pieces)))


class Shared(nn.ModuleDict):
    """Factors by width; a child of the trunk, so that each has one entry in its state_dict."""

    def merged(self):
        """Nothing is left of them in a merged trunk."""


class FacTLinear(SlicedLinear):
    """W + s U C V on slices of the outputs, with the core of the slice's `inputs` x `outputs` pieces.

    Shapes: x (..., inputs d); `core` (inputs r, slices outputs r), where tensor train is used.
    """

    def __init__(self, old, factors, scale, dropout, slices, of):
        super().__init__(old, slices, of)
        self.shared = (factors,)            # in a tuple it is no child: one entry in the state_dict, one after a copy
        self.scale, self.dropout = scale, dropout
        rank, width = factors.u.shape
        self.inputs, self.outputs = self.in_features // width, self.width // width

    def cores(self):
        """The core, (inputs r, slices outputs r)."""
        raise NotImplementedError

    def deltas(self):
        u, v = self.shared[0].u, self.shared[0].v
        core = self.cores().unflatten(1, (len(self.slices), self.outputs, -1)).unflatten(0, (self.inputs, -1))
        return self.scale * torch.einsum('dr,iqsor,qe->sodie', v, core, u).flatten(3).flatten(1, 2)

    def forward(self, x):
        """The same by thin products, with dropout between core and V."""
        u, v = self.shared[0].u, self.shared[0].v
        out = F.linear(x, self.weight, self.bias)
        inner = F.linear(x.unflatten(-1, (self.inputs, -1)), u).flatten(-2) @ self.cores()
        inner = F.dropout(inner, self.dropout, self.training).unflatten(-1, (-1, u.shape[0]))
        added = F.linear(inner, self.scale * v).flatten(-2)             # (..., slices outputs d)
        return self.add(out, added.chunk(len(self.slices), dim=-1))


class TensorTrain(FacTLinear):
    """Cores of its own, each uniform in +-1/sqrt(its inputs), as a linear layer in the authors' code."""

    def __init__(self, old, factors, scale, dropout, slices, of):
        super().__init__(old, factors, scale, dropout, slices, of)
        rank = factors.u.shape[0]
        bound = 1 / math.sqrt(self.inputs * rank)
        core = torch.empty(self.inputs * rank, len(slices) * self.outputs * rank).uniform_(-bound, bound)
        self.core = nn.Parameter(core.to(old.weight))

    def cores(self):
        return self.core


class Tucker(FacTLinear):
    """Cores from columns of the shared P, from column `first` on.

    For fc1 and fc2 the authors' code does not set the pieces' (r, r) cores side by side: it cuts the tensor (r, r, 4)
    anew as it lies in memory, (r, 4 r). `pieces='code'` does the same, 'paper' sets them side by side.
    """

    def __init__(self, old, factors, scale, dropout, slices, of, first, pieces):
        super().__init__(old, factors, scale, dropout, slices, of)
        self.first, self.pieces = first, pieces

    def cores(self):
        factors, each = self.shared[0], self.inputs * self.outputs
        core = factors.c @ factors.p[:, self.first:self.first + len(self.slices) * each]        # (r, r, pieces)
        if self.inputs > 1:
            return core.flatten(1).T if self.pieces == 'code' else core.permute(2, 0, 1).flatten(0, 1)
        return core.flatten(1) if self.pieces == 'code' and each > 1 else core.transpose(1, 2).flatten(1)


@METHODS.register_module()
class FacT(Method):
    """Factor-tuning of attention and MLP.

    Refused: MLPs that cannot be cut into squares (SwiGLU); for want of linears, ConvNeXts whose MLPs are convolutions
    of 1x1, and on mmsegmentation's ViT all roles but 'fc1' and 'fc2', as torch computes its attention past any layer.

    Args:
        rank (int): r; 8, 16 or 32 (tensor train on ViT-B: 21,504, 61,440, 196,608 parameters).
        variant (str): 'tt', tensor train, or 'tk', Tucker.
        scale (float): s; the authors search it among 0.01, 0.1, 1, 10, 100 for each task.
        dropout (float): behind the core.
        roles (sequence of str): the linears whose weights are decomposed.
        pieces (str): how Tucker's fc1 and fc2 are put together: 'code' as by the authors, or 'paper' (see `Tucker`).
        train_out_norms (bool): see `Method`.
    """

    mergeable = True
    linear = {'v': 0.}

    def __init__(self, rank=16, variant='tt', scale=1., dropout=0.1, roles=('q', 'k', 'v', 'proj', 'fc1', 'fc2'),
                 pieces='code', train_out_norms=False):
        super().__init__(train_out_norms)
        self.rank = integer('rank', rank)
        self.variant = choice('variant', variant, ('tt', 'tk'))
        self.scale = number('scale', scale)
        self.dropout = number('dropout', dropout, 0, 1)
        self.roles = role_names(roles)
        self.pieces = choice('pieces', pieces, ('code', 'paper'))

    def apply(self, trunk, parts):
        found, pieces = {}, {}                              # by width: the layers, and the number of their pieces
        for name, old, slices, of in linears(trunk, parts, self.roles):
            width = min(old.in_features, old.out_features // of)
            integer('rank', self.rank, high=width)
            if old.in_features % width or (old.out_features // of) % width:
                raise ValueError(f'FacT cuts weights into squares, and {name} ({old.in_features} -> {old.out_features})'
                                 f' is no multiple of {width}: leave its role out of roles={self.roles}')
            first = pieces.get(width, 0)
            found.setdefault(width, []).append((name, old, slices, of, first))
            pieces[width] = first + old.in_features // width * (old.out_features // of // width) * len(slices)
        shared = Shared()
        for width, layers in found.items():
            factors = Factors(width, self.rank, pieces[width] if self.variant == 'tk' else 0).to(layers[0][1].weight)
            shared[str(width)] = factors
            for name, old, slices, of, first in layers:
                options = old, factors, self.scale, self.dropout, slices, of
                replace(trunk, name, TensorTrain(*options) if self.variant == 'tt' else
                        Tucker(*options, first, self.pieces))
        trunk.fact = shared
        checkpoint_once(trunk, parts)
