"""A convolution whose frozen weight gets a trained addition."""
from torch import nn
from torch.nn import functional as F

from .adopted import AdoptedConv2d


class DeltaConv2d(AdoptedConv2d):
    """W + s B A for factors A (r, in / groups * h * w) and B (out, r / groups), as in LoRA of convolutions.

    A is a convolution of the layer's own size, stride, padding, dilation and groups to r channels, B one of 1x1 with
    as many groups. So the sum is a kernel of the layer's size, and it merges.

    The method states `factors()`.
    """

    def factors(self):
        """The additions, a list of (A, B, dropout of the r channels); B holds the scale."""
        raise NotImplementedError

    def whole(self):
        """The weight that the layer acts by."""
        return self.weight + self.delta()

    def delta(self):
        """What is added to the weight, of its shape."""
        return sum((self.product(down, up) for down, up, _ in self.factors()), self.weight.new_zeros(()))

    def product(self, down, up):
        """B A, group by group."""
        down, up = down.unflatten(0, (self.groups, -1)), up.unflatten(0, (self.groups, -1))
        return (up @ down).reshape(self.weight.shape)

    def forward(self, x):
        """By thin products: no tensor of the weight's size is made."""
        x = self.padded(x)
        out = F.conv2d(x, self.weight, self.bias, *self.geometry)
        for down, up, dropout in self.factors():
            inner = F.conv2d(x, down.view(-1, *self.weight.shape[1:]), None, *self.geometry)
            inner = F.dropout(inner, dropout, self.training)
            out = out + F.conv2d(inner, up[:, :, None, None], groups=self.groups)
        return out

    def merged(self):
        """A layer of the old class that gives the same outputs."""
        layer = self.empty()
        layer.weight = nn.Parameter(self.whole().detach().to(self.weight.dtype), self.weight.requires_grad)
        layer.bias = self.bias
        return layer.train(self.training)
