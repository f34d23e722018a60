"""Live bytes: what operators allocate and what of it is still there, storage by storage, on any device."""
import weakref
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Counts each storage that an operator allocates while the mode is on, until it is freed.

    The count owes nothing to autograd's hooks, so it sees what a custom function keeps as an attribute of its context,
    and nothing to the process, so other models in it do not disturb. Not seen is what a kernel takes and gives back
    inside one operator.

    Attributes:
        current, peak (int): bytes now, and at most so far.
    """

    def __init__(self):
        super().__init__()
        self.current, self.peak = 0, 0
        self.storages = {}                                      # address -> [bytes, weak reference]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        # a constant's memory was taken outside of any operator
        given = () if func is torch.ops.aten.lift_fresh.default else storages((args, kwargs))
        given = {storage._cdata for storage in given}
        for storage in storages(out):
            key, size = storage._cdata, storage.nbytes()
            if key in self.storages:                            # resized in place, as `out=` does
                self.change(size - self.storages[key][0])
                self.storages[key][0] = size
            elif key not in given:
                self.storages[key] = [size, weakref.ref(storage, partial(self.freed, key))]
                self.change(size)
        return out

    def freed(self, key, _):
        self.change(-self.storages.pop(key)[0])

    def change(self, size):
        self.current += size
        self.peak = max(self.peak, self.current)


def storages(tree):
    """The storages of the dense tensors in nested containers: tuples, lists and dicts, which is what operators take."""
    if isinstance(tree, torch.Tensor):
        return [tree.untyped_storage()] if tree.layout == torch.strided else []
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ()
    return [storage for each in inside for storage in storages(each)]


def unique_bytes(tensors):
    """Bytes of the storages of some tensors, each counted once."""
    return sum({storage._cdata: storage.nbytes() for storage in storages(list(tensors))}.values())
