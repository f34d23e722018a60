"""A linear layer, or a convolution, in another's place."""
from torch import nn
from torch.nn import functional as F

# Convolutions whose own forward does nothing but pad as TensorFlow's 'SAME' does (EfficientNets of timm, mmpretrain).
PADS_ITSELF = ('Conv2dSame', 'Conv2dAdaptivePadding')


def pads_itself(kind):
    return kind.__name__ in PADS_ITSELF and kind.__module__.startswith(('timm.', 'mmcv.'))


class AdoptedLinear(nn.Linear):
    """Takes the place of the linear layer `old` with its parameters: the same objects, the same state_dict names."""

    def __init__(self, old):
        nn.Module.__init__(self)
        self.in_features, self.out_features = old.in_features, old.out_features
        self.weight, self.bias = old.weight, old.bias
        self.plain = type(old)                                          # mmcv has a linear class of its own
        self.train(old.training)


class AdoptedConv2d(nn.Conv2d):
    """The same of a convolution of any geometry.

    Attributes:
        geometry (tuple): stride, padding, dilation and groups of the product behind `padded`.
    """

    def __init__(self, old):
        nn.Module.__init__(self)
        settings(old, self)
        self.weight, self.bias = old.weight, old.bias
        self.plain = type(old)

    @property
    def geometry(self):
        return self.stride, (0, 0) if self.pads else self.padding, self.dilation, self.groups

    @property
    def pads(self):
        """Whether the layer pads more than a product can: `padded` does it."""
        return (isinstance(self.padding, str) or self.padding_mode != 'zeros' or pads_itself(self.plain))

    def padded(self, x):
        """x as the products with `geometry` take it; they share it."""
        if not self.pads:
            return x
        if pads_itself(self.plain):
            around = [side for size, kernel, stride, dilation in reversed(list(zip(
                x.shape[-2:], self.kernel_size, self.stride, self.dilation)))
                for side in halves(max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0))]
        else:
            around = self._reversed_padding_repeated_twice
        return F.pad(x, around, mode='constant' if self.padding_mode == 'zeros' else self.padding_mode)

    def empty(self):
        """A layer of the old class without weight and bias."""
        layer = self.plain.__new__(self.plain)
        nn.Module.__init__(layer)
        settings(self, layer)
        layer.register_parameter('weight', None), layer.register_parameter('bias', None)
        return layer


def settings(source, to):
    """Give a convolution what makes the geometry of another."""
    for name in (*nn.Conv2d.__constants__, 'transposed', '_reversed_padding_repeated_twice', 'training'):
        if hasattr(source, name):
            setattr(to, name, getattr(source, name))


def halves(count):
    """Of padding in front and behind; an odd one goes behind."""
    return count // 2, count - count // 2
