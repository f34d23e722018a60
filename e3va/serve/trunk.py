"""The tensors of the one trunk, and models that have them as their own parameters."""
import torch
from torch import nn

from ..delta.extract import frozen
from ..layers import Int8Linear
from ..layers.int8_linear import rounded
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
    def room(self):
        """Values that a trunk of these may register while it is built; layers that adopt a weight count it again."""
        return 4 * sum(value.numel() for value in self.tensors.values())

    @property
    def stock(self):
        """{name: tensor} in single precision, of which trunks can be built.

        What is here in fewer bits alone is given as floats, which are rounded to the same again.
        """
        found = {}
        for (name, kind), value in self.tensors.items():
            if kind is torch.int8:
                place = name.removesuffix('.levels')
                found[f'{place}.weight'] = value * self.tensors[f'{place}.scale', torch.float32]
            elif kind is torch.bfloat16:
                found[name] = value.float()
        return {**found, **{name: value for (name, kind), value in self.tensors.items() if kind is torch.float32}}

    def holds(self, trunk):
        """Whether all that is frozen in a trunk is here, whole or in the bits in which the trunk has it."""
        return all(any(held.shape == value.shape for held in self.held(trunk, name, value.dtype))
                   for name, value in frozen(trunk).items())

    def held(self, trunk, name, kind):
        """What is here of an entry of a trunk: in its own type, and whole."""
        place, own = name.rpartition('.')[0], (name, kind)
        if in_levels(trunk, name):
            own = f'{place}.levels', torch.int8
        return [self.tensors[key] for key in dict.fromkeys([own, (name, torch.float32)]) if key in self.tensors]

    def check(self, trunk, what):
        """ValueError where the frozen values of a trunk are others than those in memory.

        What is in memory in other few bits alone, bf16 for int8, cannot be compared: norms and biases can.
        """
        wrong = []
        for name, value in frozen(trunk).items():
            if in_levels(trunk, name):
                layer = trunk.get_submodule(name.rpartition('.')[0])
                wrong += [name for held in self.held(trunk, name, value.dtype) if not torch.equal(
                    held if held.dtype is torch.int8 else rounded(held).qdata, layer.levels)]
            else:
                wrong += [name for kind in (torch.float32, torch.bfloat16, torch.float16) for held in
                          [self.tensors.get((name, kind))] if held is not None and not alike(held, value)]
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


def in_levels(trunk, name):
    """Whether an entry of a trunk is a weight that its layer holds as whole numbers."""
    place, _, leaf = name.rpartition('.')
    return leaf == 'weight' and isinstance(trunk.get_submodule(place), Int8Linear)


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
