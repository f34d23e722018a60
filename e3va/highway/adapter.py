"""The adapters of the highway: A(x) = U(GELU(D(x))) + x (section 3.3)."""
import torch
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

    def inner(self, x):
        """All but the last product: the output is inner(x) s^T + bias, with s and bias of the up projection."""
        return self.up.inner(F.gelu(self.down(x)))

    def forward(self, x):
        return self.up(F.gelu(self.down(x)))

    def add_to(self, c, x):
        """Add the output, but for its bias, to c in place; for use where no gradient is recorded."""
        h = self.inner(x)
        # the exporter that traces loses what is written through a view
        if h.dtype == c.dtype == self.up.s.dtype and not torch.jit.is_tracing():
            c.view(-1, c.shape[-1]).addmm_(h.flatten(0, -2), self.up.s.t())
        else:                                                           # autocast, too
            c += F.linear(h, self.up.s)

    def gradients(self, x, g, total):
        """(trained parameter, gradient), from the output's gradient g (tokens, C) and its sum over tokens, `total`."""
        s, bias = self.up.s, self.up.bias
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        inside = [parameter for parameter in trained if parameter is not s and parameter is not bias]
        if not trained:
            return []
        with torch.enable_grad():
            h = self.inner(x)
        found = {s: (g.t() @ h.detach().flatten(0, -2)).to(s.dtype), bias: total.to(bias.dtype)}
        if inside:
            found.update(zip(inside, torch.autograd.grad(h, inside, (g @ s).view_as(h))))
        return [(parameter, found[parameter]) for parameter in trained]


def trained_of(pair):
    """What trains of {name: adapter}."""
    return [parameter for adapter in pair.values() for parameter in adapter.parameters() if parameter.requires_grad]


class Dense(DualLowRank):
    """The standard adapter's projection, a whole matrix and a bias ('E3VA Standard' of Table 5)."""

    def __init__(self, in_features, out_features):
        nn.Module.__init__(self)
        plain = nn.Linear(in_features, out_features)
        self.s, self.bias = plain.weight, plain.bias                    # `s` is what `zero` makes zero

    def inner(self, x):
        return x
