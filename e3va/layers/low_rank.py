"""The dual low-rank projection of E3VA (section 3.3)."""
import math

import torch
from torch import nn
from torch.nn import functional as F


class DualLowRank(nn.Module):
    r"""y = (s_1 t_1 + s_2 t_2) x + b, with s_i of shape (out, rank), t_i of shape (rank, in).

    The sum of two rank-r products is one product of rank 2 r, so the two branches are stored side by side and the
    matrix is never formed. Parameters are plain tensors: an `init_weights` that walks over `nn.Linear` leaves them be.

    Initial values follow the same authors' earlier code (LoRand): every factor uniform in +-1/sqrt(its second
    dimension as stored there), i.e. +-1/sqrt(rank) for t and +-1/sqrt(out) for s, the bias in +-1/sqrt(in).
    """

    def __init__(self, in_features, out_features, rank):
        super().__init__()
        self.rank = rank
        self.t = nn.Parameter(torch.empty(2 * rank, in_features))
        self.s = nn.Parameter(torch.empty(out_features, 2 * rank))
        self.bias = nn.Parameter(torch.empty(out_features))
        for tensor, fan in ((self.t, rank), (self.s, out_features), (self.bias, in_features)):
            nn.init.uniform_(tensor, -1 / math.sqrt(fan), 1 / math.sqrt(fan))

    def zero(self):
        """Make the output zero; the gradient then reaches `s` and `bias` first."""
        nn.init.zeros_(self.s)
        nn.init.zeros_(self.bias)

    def inner(self, x):
        """(..., in) -> (..., 2 rank), which `s` and the bias turn into the output."""
        return F.linear(x, self.t)

    def forward(self, x):
        return F.linear(self.inner(x), self.s, self.bias)
