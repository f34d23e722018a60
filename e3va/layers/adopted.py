"""A linear layer in another's place."""
from torch import nn


class AdoptedLinear(nn.Linear):
    """Takes the place of the linear layer `old` with its parameters: the same objects, the same state_dict names."""

    def __init__(self, old):
        nn.Module.__init__(self)
        self.in_features, self.out_features = old.in_features, old.out_features
        self.weight, self.bias = old.weight, old.bias
        self.plain = type(old)                                          # mmcv has a linear class of its own
        self.train(old.training)
