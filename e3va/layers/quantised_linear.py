"""A linear layer of few bits, trained as a whole."""
import math

import torch
from torch import nn
from torch.nn import functional as F

from .quantised import Quantised


class QuantisedLinear(Quantised):
    """x W^T with W (out, in) in `bits` bits and no bias, in the place and of the size of the linear layer `old`.

    No subclass of nn.Linear: a head's `init_weights` would fill it.
    """

    def __init__(self, old, bits):
        super().__init__()
        self.in_features, self.out_features, self.plain = old.in_features, old.out_features, type(old)
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(torch.empty_like(old.weight), a=math.sqrt(5)))
        self.quantise(bits, 'weight')
        self.to(old.weight).train(old.training)

    def forward(self, x):
        return F.linear(x, self.value('weight'))

    def merged(self):
        """A layer of the old class that gives the same outputs; its bias is zero."""
        plain = self.plain(self.in_features, self.out_features).to(self.weight)
        with torch.no_grad():
            plain.weight.copy_(self.value('weight'))
            plain.bias.zero_()
        return plain.train(self.training)
