"""Entries that a task has in the trunk's weights: GPS. They are exchanged in place, and back, to the bit.

The stock layers then run at their own speed; a sparse layer would make a whole copy of its weight for every image.
"""
import torch

from ..layers import SparseConv2d, SparseLinear
from ..surgery import replace


class Written:
    """The selected entries of a trunk: whose turn it is has its values in the weights, and the trunk's own ones here.

    Attributes:
        places (list): (weight, flat; places; values) of each layer.
        active (bool): the task's values are in the weights.
    """

    def __init__(self, places):
        self.places, self.active = places, False

    @torch.no_grad()
    def exchange(self):
        for weight, index, values in self.places:
            before = weight.index_select(0, index)                      # a quarter quicker than weight[index]
            weight.index_copy_(0, index, values)
            values.copy_(before)
        self.active = not self.active

    @property
    def nbytes(self):
        return sum(values.nbytes + index.nbytes for _, index, values in self.places)


def entries(trunk):
    """The `Written` of a trunk under GPS, whose sparse layers become stock ones around the same weights; else None."""
    places = []
    for name, layer in list(trunk.named_modules()):
        if not isinstance(layer, (SparseLinear, SparseConv2d)) or layer.values is None or layer.weight.requires_grad:
            continue
        plain = layer.empty()
        plain.weight, plain.bias = layer.weight, layer.bias
        replace(trunk, name, plain.train(layer.training))
        if layer.selected:
            places.append((layer.weight.detach().view(-1), layer.index.flatten().long(),
                           layer.values.detach().flatten().clone()))
    return Written(places) if places else None
