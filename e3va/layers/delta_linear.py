"""A linear layer whose frozen weight gets a trained addition."""
from torch import nn
from torch.nn import functional as F

from .adopted import AdoptedLinear

NO_BIAS = ('a layer without bias cannot take the bias of its addition: the tuned model cannot be merged, keep it or '
           'its delta (e3va.save_delta)')


class DeltaLinear(AdoptedLinear):
    """W + delta, where the method states `delta()`; forward, merge and checkpoint follow from it.

    A method overrides `forward` only for a cheaper path with the same result.
    """

    def delta(self):
        """What is added to the weight, (out_features, in_features)."""
        raise NotImplementedError

    def delta_bias(self):
        """What is added to the bias, (out_features,), or None."""
        return None

    def whole(self):
        """The weight that the layer acts by."""
        return self.weight + self.delta()

    def forward(self, x):
        added, bias = self.delta_bias(), self.bias
        if added is not None:
            bias = added if bias is None else bias + added
        return F.linear(x, self.whole(), bias)

    def merged(self):
        """A layer of the old class that gives the same outputs.

        Raises ValueError where the old layer has no bias and the addition has one.
        """
        plain = self.plain(self.in_features, self.out_features, self.bias is not None, device='meta')
        weight = self.weight.detach() + self.delta().detach().to(self.weight.dtype)
        plain.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        plain.bias, added = self.bias, self.delta_bias()
        if added is not None:
            if self.bias is None:
                raise ValueError(NO_BIAS)
            bias = self.bias.detach() + added.detach().to(self.bias.dtype)
            plain.bias = nn.Parameter(bias, requires_grad=self.bias.requires_grad)
        return plain.train(self.training)
