"""RepAdapter (Luo et al., 2023, arXiv 2302.08106): adapters without activation in front of linears, x + s B(A x).

A (d -> r) and the grouped B (r -> d) have biases; both are merged into the linear behind them. In the paper an
adapter stands in front of a whole attention or MLP, behind its norm. It stands here in front of the linear that they
begin with, which is the same, and also where Swin pads windows in between: there only this can be merged.
"""
import torch
from torch import nn
from torch.nn import functional as F

from ..layers import DeltaLinear
from ..registry import METHODS
from ..surgery import replace
from .base import Method, choice, integer, linears, number

BEGIN = dict(attn=('q', 'k', 'v'), mlp=('fc1',))                        # the linears that a branch begins with


class RepAdapterLinear(DeltaLinear):
    """W (x + s (B dropout(A x + a) + b)) + c, with B block-diagonal, one block for each of the groups.

    A is xavier uniform, B and the biases are zero, so training starts at the trunk.

    Shapes: `down` (r, d), `up` (groups, d / groups, r / groups); x (..., d).
    """

    def __init__(self, old, rank, scale, groups, dropout):
        super().__init__(old)
        width = old.in_features
        self.scale, self.dropout = scale, dropout
        like = dict(dtype=old.weight.dtype, device=old.weight.device)
        self.down = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, width, **like)))
        self.down_bias = nn.Parameter(torch.zeros(rank, **like))
        self.up = nn.Parameter(torch.zeros(groups, width // groups, rank // groups, **like))
        self.up_bias = nn.Parameter(torch.zeros(width, **like))

    def behind(self, inner):
        """B inner, (..., r) -> (..., d)."""
        return torch.einsum('...gr,gdr->...gd', inner.unflatten(-1, (len(self.up), -1)), self.up).flatten(-2)

    def before(self):
        """s W B, (out, r)."""
        blocks = self.weight.unflatten(-1, (len(self.up), -1))
        return self.scale * torch.einsum('ogd,gdr->ogr', blocks, self.up).flatten(1)

    def delta(self):
        return self.before() @ self.down

    def delta_bias(self):
        return self.before() @ self.down_bias + self.scale * self.weight @ self.up_bias

    def forward(self, x):
        """The same by thin products."""
        inner = F.dropout(F.linear(x, self.down, self.down_bias), self.dropout, self.training)
        return F.linear(x + self.scale * (self.behind(inner) + self.up_bias), self.weight, self.bias)


@METHODS.register_module()
class RepAdapter(Method):
    """Adapters in front of attention and MLP that vanish when merged.

    ConvNeXt's blocks get one, in front of the first pointwise linear; the authors' code puts another in front of the
    depthwise convolution, which it does not merge.

    Refused for want of linears: ConvNeXts whose MLPs are convolutions of 1x1; 'attn' on mmsegmentation's ViT, whose
    attention torch computes past any layer in its place. Where a layer has no bias, merging is refused.

    Args:
        rank (int): r (8 on ViT-B: 221,184 weights, which the paper counts, and 18,624 biases).
        scale (float): s; the authors search it among 0.1, 0.5, 1, 5, 10 for each task.
        groups (int): of B; it divides rank and width.
        dropout (float): between A and B.
        branches (sequence of str): of 'attn' and 'mlp'.
        train_out_norms (bool): see `Method`.
    """

    mergeable = True
    linear = {'up': 0., 'up_bias': 0.}

    def __init__(self, rank=8, scale=1., groups=2, dropout=0.1, branches=('attn', 'mlp'), train_out_norms=False):
        super().__init__(train_out_norms)
        self.rank, self.groups = integer('rank', rank), integer('groups', groups)
        self.scale = number('scale', scale)
        self.dropout = number('dropout', dropout, 0, 1)
        branches = (branches,) if isinstance(branches, str) else branches
        self.roles = [role for name in branches for role in BEGIN[choice('branches', name, tuple(BEGIN))]]
        if not self.roles:
            raise ValueError("branches is empty: name 'attn', 'mlp' or both")

    def apply(self, trunk, parts):
        for name, old, _, _ in linears(trunk, parts, self.roles):
            integer('rank', self.rank, high=old.in_features)
            if self.rank % self.groups or old.in_features % self.groups:
                raise ValueError(f'groups must divide rank and width: groups={self.groups}, rank={self.rank}, width '
                                 f'{old.in_features}')
            replace(trunk, name, RepAdapterLinear(old, self.rank, self.scale, self.groups, self.dropout))
