"""The tensors of the one trunk, and models that have them as their own parameters."""
import torch
from torch import nn

from ..delta.extract import frozen
from ..report import changed


class Pool:
    """The frozen tensors of a trunk; a model that takes them has these very tensors, and no copies.

    Attributes:
        tensors (dict): {(name in the trunk, type): tensor}; a method may keep a trunk in bf16 or int8 beside.
        of (str): what the trunk came with, for messages.
    """

    def __init__(self):
        self.tensors, self.of = {}, None

    @property
    def nbytes(self):
        return sum(value.nbytes for value in self.tensors.values())

    @property
    def stock(self):
        """{name: tensor} in single precision, of which trunks can be built."""
        return {name: value for (name, kind), value in self.tensors.items() if kind is torch.float32}

    def holds(self, trunk):
        """Whether all that is frozen in a trunk is here."""
        return all(found is not None and found.shape == value.shape for name, value in frozen(trunk).items()
                   for found in [self.tensors.get((name, value.dtype), self.tensors.get((name, torch.float32)))])

    def check(self, trunk, what):
        """ValueError where the frozen values of a trunk are others than those in memory."""
        wrong = [name for name, value in frozen(trunk).items() for (known, _), held in self.tensors.items()
                 if known == name and not alike(held, value)] if self.tensors else []
        if wrong:
            raise ValueError(f'{what} is of another trunk than the one in memory, which is that of {self.of}: '
                             f'{len(wrong)} of its weights are others, such as {wrong[0]}. Serve it by a server of its '
                             'own')

    def take(self, trunk, what):
        """Let a trunk, whose values have been checked, have the pool's tensors in the place of its own."""
        own = changed(trunk)
        for place, module in trunk.named_modules(remove_duplicate=False):
            for kind in (module._parameters, module._buffers):
                for leaf, value in kind.items():
                    name = f'{place}.{leaf}'.lstrip('.')
                    if value is None or value.requires_grad or name in own:
                        continue
                    held = self.tensors.setdefault((name, value.dtype), value.detach())
                    if held.data_ptr() != value.data_ptr() and alike(held, value):
                        kind[leaf] = nn.Parameter(held, False) if isinstance(value, nn.Parameter) else held
        self.of = self.of or what


def alike(a, b):
    """Whether two tensors hold the same values; of two types, the same in the shorter one."""
    if a.shape != b.shape:
        return False
    kind = min((a.dtype, b.dtype), key=lambda one: one.itemsize)
    return (a.data_ptr() == b.data_ptr() and a.dtype == b.dtype) or torch.equal(a.to(kind), b.to(a.device, kind))


@torch.no_grad()
def release(trunk):
    """Give a trunk whose parameters are the pool's copies of those that train, which a load is going to fill."""
    for parameter in trunk.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.clone()
