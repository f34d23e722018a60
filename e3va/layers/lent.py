"""Weights that are read past the layer that holds them.

torch's attention does not call its `out_proj`, it hands the weight to a function; so do BEiT, SwinV2 and EVA with
`F.linear(x, self.qkv.weight, bias)`, and torch's encoder layer in evaluation. What a method adds to such a layer would
never act. While the module that reads the weight runs, it finds there the whole one, addition included.
"""
import functools
import inspect
import re

from torch import nn

from .sparse import SparseAttention, SparseWeight


def lend(trunk):
    """Have every adapted layer's whole weight where a module above reads it; its forward is then the stock one."""
    owners = {}
    for name, layer in trunk.named_modules(remove_duplicate=False):
        if hasattr(layer, 'whole') and isinstance(layer, (nn.Linear, nn.Conv2d)):
            for owner, inner in read_past(trunk, name):
                owners.setdefault(owner, []).append(inner)
    for owner, names in owners.items():
        owner.register_forward_pre_hook(functools.partial(hand_out, tuple(names)))
        owner.register_forward_hook(functools.partial(take_back, tuple(names)), always_call=True)


def read_past(trunk, name):
    """[(module, name in it)] of the modules above a layer whose code reads its weight, past its forward."""
    path = name.split('.')
    above = [(trunk.get_submodule('.'.join(path[:depth])), '.'.join(path[depth:])) for depth in range(len(path))]
    return [(owner, inner) for owner, inner in above
            if not isinstance(owner, SparseAttention) and reads(type(owner), inner)]


def hand_out(names, owner, inputs):
    for layer in map(owner.get_submodule, names):
        if isinstance(layer, SparseWeight) and layer.weight.requires_grad:     # the layer is the stock one
            continue
        if 'weight' not in vars(layer):                                 # found before the parameter of this name
            vars(layer).update(weight=layer.whole(), forward=functools.partial(layer.plain.forward, layer))


def take_back(names, owner, inputs, output):
    for layer in map(owner.get_submodule, names):
        vars(layer).pop('weight', None), vars(layer).pop('forward', None)


@functools.cache
def reads(kind, name):
    """Whether the code of a class reads the weight of its layer `name`, other than for its type or shape."""
    return re.search(rf'\bself\.{re.escape(name)}\.weight\b(?!\.(dtype|device|shape|size|ndim|data\b))',
                     source(kind)) is not None


@functools.cache
def source(kind):
    """The code that a module of a class runs in its forward, and what that calls; none where it cannot be read."""
    found, waiting, seen = [], [name for name in dir(kind) if name.startswith('forward')], set(dir(nn.Module))
    seen.discard('forward')
    while waiting:
        name = waiting.pop()
        function = getattr(kind, name, None)
        if name not in seen and inspect.isfunction(function):
            try:
                found.append(inspect.getsource(function))
            except (OSError, TypeError):
                found.append('')
            waiting += re.findall(r'\bself\.(\w+)\(', found[-1])
            if 'super()' in found[-1]:
                found += [code for base in kind.__bases__ if base is not nn.Module for code in [source(base)]]
        seen.add(name)
    return '\n'.join(found)
