"""A linear layer whose frozen weight gets a trained addition."""
from torch import nn
from torch.nn import functional as F


class DeltaLinear(nn.Linear):
    """W + delta, where the method states `delta()`; forward, merge and checkpoint follow from it.

    The layer adopts the old layer's parameters (same objects, same state_dict names). A method overrides `forward` only
    for a cheaper path with the same result.
    """

    def __init__(self, old):
        nn.Module.__init__(self)
        self.in_features, self.out_features = old.in_features, old.out_features
        self.weight, self.bias = old.weight, old.bias
        self.plain = type(old)                                          # mmcv has a linear class of its own
        self.train(old.training)

    def delta(self):
        """What is added to the weight, (out_features, in_features)."""
        raise NotImplementedError

    def forward(self, x):
        return F.linear(x, self.weight + self.delta(), self.bias)

    def merged(self):
        """A layer of the old class that gives the same outputs."""
        plain = self.plain(self.in_features, self.out_features, self.bias is not None, device='meta')
        weight = self.weight.detach() + self.delta().detach().to(self.weight.dtype)
        plain.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        plain.bias = self.bias
        return plain.train(self.training)
