"""A frozen linear layer with a module behind it."""
from torch.nn import functional as F

from .adopted import AdoptedLinear
from .emptied import serving


class FollowedLinear(AdoptedLinear):
    """`adapter(W x + b)`: behind the last linear of a branch that is 'after the attention' or 'after the MLP'."""

    def __init__(self, old, adapter):
        super().__init__(old)
        self.adapter = adapter.to(old.weight)                           # its device and type

    def forward(self, x):
        out, adapter = F.linear(x, self.weight, self.bias), serving(self.adapter)
        return out if adapter is None else adapter(out)
