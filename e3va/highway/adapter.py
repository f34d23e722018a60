"""The adapters of the highway: A(x) = U(GELU(D(x))) + x (section 3.3)."""
from torch import nn
from torch.nn import functional as F

from ..layers import DualLowRank


class Adapter(nn.Module):
    """U(GELU(D(x))) without the adapter's own `+ x`, which the highway adds where the option says so.

    Args:
        width (int): C, channels of the branch.
        mid (int): channels between down and up projection.
        project: makes a projection from (in_features, out_features), e.g. a `DualLowRank` of some rank.
    """

    def __init__(self, width, mid, project):
        super().__init__()
        self.down = project(width, mid)
        self.up = project(mid, width)

    def forward(self, x):
        return self.up(F.gelu(self.down(x)))


class Dense(DualLowRank):
    """The standard adapter's projection, a whole matrix and a bias ('E3VA Standard' of Table 5)."""

    def __init__(self, in_features, out_features):
        nn.Module.__init__(self)
        plain = nn.Linear(in_features, out_features)
        self.s, self.bias = plain.weight, plain.bias                    # `s` is what `zero` makes zero

    def forward(self, x):
        return F.linear(x, self.s, self.bias)
