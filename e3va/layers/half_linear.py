"""A frozen linear layer in bfloat16, for trunks that need no gradient."""
from torch.nn import functional as F

from .adopted import AdoptedLinear


class HalfLinear(AdoptedLinear):
    """Half the bytes, and the product in bfloat16; input and output keep their type, the parameters their names."""

    def __init__(self, old):
        super().__init__(old)
        self.bfloat16()

    def forward(self, x):
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)
