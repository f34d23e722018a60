"""Values of their own for some entries of a module's frozen parameters, whatever the module is: a norm, a bias."""
import torch
from torch import nn

from ..surgery import called, unwrap, wrap
from .sparse_product import Put, put

CHILD = 'entries'               # of the module that they belong to


class Entries(nn.Module):
    """Of a module's parameters `leaf` the trained values `leaf` at the flat places `leaf_index`, one each.

    The module stays as it is, its parameters under their stock names. While its forward runs it finds copies with the
    values in their places, so an optimizer acts on these entries and on no other, as with `layers.sparse`. Where the
    parameter itself trains (a selection's gradients) it finds that. At first all entries have values.

    Shapes: `leaf` and `leaf_index` (n,); the index is int32, ascending. Without entries there is no parameter `leaf`.
    """

    def __init__(self, module, leaves):
        super().__init__()
        for leaf in leaves:
            stock = getattr(module, leaf)
            self.register_parameter(leaf, nn.Parameter(stock.detach().flatten().clone()))
            self.register_buffer(f'{leaf}_index', torch.arange(stock.numel(), dtype=torch.int32, device=stock.device))

    @property
    def leaves(self):
        return list(self._parameters)

    def index(self, leaf):
        return getattr(self, f'{leaf}_index')

    @torch.no_grad()
    def reshape(self, leaf, count):
        """Have `count` entries of a parameter, at places yet to be given; the parameter stays the same object."""
        values, index = self._parameters[leaf], self.index(leaf)
        if index.numel() == count:
            return
        index.data = index.new_zeros(count)
        if not count:
            self._parameters[leaf] = None
        else:
            values.data, values.grad = values.new_zeros(count), None

    @torch.no_grad()
    def select(self, module, leaf, index):
        """Let the entries of `module.leaf` at these flat places train, from their values on."""
        self.reshape(leaf, index.numel())
        self.index(leaf).copy_(index)
        self.refresh(module, leaf)

    @torch.no_grad()
    def refresh(self, module, leaf):
        """Take the values from the module's parameter."""
        if self._parameters[leaf] is not None:
            self._parameters[leaf].copy_(getattr(module, leaf).flatten()[self.index(leaf).long()])

    def whole(self, module):
        """{leaf: the parameter with the values in their places} of those that have values, and do not train whole."""
        function = put if torch.jit.is_tracing() else Put.apply         # a trace cannot be saved with our functions
        return {leaf: function(stock, self.index(leaf), values) for leaf, values in self._parameters.items()
                if values is not None and not (stock := module._parameters[leaf]).requires_grad}


def give_entries(module, leaves):
    """Let some of a module's parameters have trained entries."""
    module.add_module(CHILD, Entries(module, leaves))
    wrap(module, 'forward', forward)


def forward(before, module, *inputs, **options):
    found = getattr(module, CHILD).whole(module)
    vars(module).update(found)                                          # found before the parameters of these names
    try:
        return called(before, module)(*inputs, **options)
    finally:
        for leaf in found:
            del vars(module)[leaf]


def with_entries(trunk):
    """{name: module} of the modules that have some."""
    return {name: module for name, module in trunk.named_modules() if isinstance(getattr(module, CHILD, None), Entries)}


@torch.no_grad()
def put_entries_in(trunk):
    """Merge: the stock modules with the values in their parameters."""
    for module in with_entries(trunk).values():
        for leaf, value in getattr(module, CHILD).whole(module).items():
            module._parameters[leaf].data = value
        unwrap(module, forward)
        delattr(module, CHILD)
