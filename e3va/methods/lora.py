"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): W + (alpha / r) B A on chosen linears, by default q and v."""
import math

import torch
from torch import nn
from torch.nn import functional as F

from ..layers import SlicedLinear
from ..registry import METHODS
from ..surgery import replace
from .base import Method, integer, linears, role_names


class LoRALinear(SlicedLinear):
    """W + scale * B A on some of the `of` equal slices of the outputs (Eq. 3). B = 0, so training starts at the trunk.

    A fused q, k, v layer has three slices; each adapted slice has factors of its own.

    Shapes: `down` (slices, r, in), `up` (slices, out / of, r); x (..., in).
    """

    def __init__(self, old, rank, scale, slices=(0,), of=1):
        super().__init__(old, slices, of)
        self.scale = scale
        like = dict(dtype=old.weight.dtype, device=old.weight.device)
        self.down = nn.Parameter(torch.empty(len(slices), rank, old.in_features, **like))
        self.up = nn.Parameter(torch.zeros(len(slices), self.width, rank, **like))
        for down in self.down:                                          # as the authors: kaiming with a = sqrt(5)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))

    def deltas(self):
        return self.scale * self.up @ self.down

    def forward(self, x):
        """The same by thin products: no tensor of the weight's size is made."""
        out = F.linear(x, self.weight, self.bias)
        inner = F.linear(x, self.down.flatten(0, 1))                    # every slice's bottleneck in one product
        return self.add(out, [F.linear(part, self.scale * up)
                              for part, up in zip(inner.chunk(len(self.up), dim=-1), self.up)])


@METHODS.register_module()
class LoRA(Method):
    """Low-rank additions to linears of the attention or the MLP.

    Args:
        rank (int): r. 8 in Pear, GPS and DMLoRA (ViT-B: 294,912 parameters); 64 in E3VA's tables.
        alpha (float): the addition is scaled by alpha / rank. Default: `rank`, i.e. a scale of 1.
        roles (sequence of str): the linears that are adapted: 'q', 'k', 'v', 'proj', 'fc1', 'fc2'.
        train_out_norms (bool): see `Method`.
    """

    mergeable = True

    def __init__(self, rank=8, alpha=None, roles=('q', 'v'), train_out_norms=False):
        super().__init__(train_out_norms)
        self.rank = integer('rank', rank)
        self.alpha = rank if alpha is None else alpha
        self.roles = role_names(roles)

    def apply(self, trunk, parts):
        for name, old, slices, of in linears(trunk, parts, self.roles):
            integer('rank', self.rank, high=min(old.in_features, old.out_features // of))
            replace(trunk, name, LoRALinear(old, self.rank, self.alpha / self.rank, slices, of))
