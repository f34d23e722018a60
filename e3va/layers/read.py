"""Layers whose weight their parent reads past them, `F.linear(x, self.qkv.weight, bias)`: BEiT, EVA, Swin V2.

What a method puts into such a layer would never run. So the parent's forward runs in a mode in which a product with
the layer's weight is a call of the layer.
"""
import functools
import inspect
import logging
import re

import torch
from mmengine.logging import print_log
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..surgery import rebind, unbind, unhook

RUNNING, CALLED = 'e3va_running', 'e3va_called'                         # notes on a layer


class Called(TorchFunctionMode):
    """In it `F.linear(x, layer.weight, bias)` is `layer(x)` with this bias."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.linear:
            x, weight, bias = bound(*args, **kwargs)
            layer = next((layer for layer in self.layers if layer.weight is weight), None)
            if layer is not None and RUNNING not in vars(layer):        # it was called, and takes its own weight
                out = layer(x)                                          # the mode is off in here
                return out if bias is None or bias is layer.bias else out + bias
        return func(*args, **kwargs)


def bound(input, weight, bias=None):
    return input, weight, bias


def call_through(trunk, edited):
    """After surgery: have the parents of edited layers call them, where they would read their weight alone.

    Args:
        edited (callable): (name, module) -> whether a module of the trunk computes other things than the stock one.

    Raises:
        ValueError: a parent that hands the weight to a function of torch as a whole (nn.MultiheadAttention).
    """
    for name, parent in trunk.named_modules():
        leaves = [leaf for leaf, child in parent.named_children() if leaf in weights_read(type(parent))
                  and edited(f'{name}.{leaf}'.lstrip('.'), child)]
        if leaves and isinstance(parent, nn.MultiheadAttention):
            raise ValueError(f'{name}.{leaves[0]} of {type(trunk).__name__} is read by torch.nn.MultiheadAttention '
                             'past any layer in its place: leave it out')
        around = isinstance(parent, nn.TransformerEncoderLayer) and any(
            edited(f'{name}.{below}'.lstrip('.'), module) for below, module in parent.named_modules() if below)
        if leaves or around:
            rebind(parent, 'forward', functools.partial(forward, leaves))
        for leaf in leaves:
            getattr(parent, leaf).register_forward_pre_hook(enter)
            getattr(parent, leaf).register_forward_hook(leave, always_call=True)


def enter(layer, inputs):
    vars(layer)[RUNNING] = True


def leave(layer, inputs, output):
    vars(layer).pop(RUNNING, None)


def forward(leaves, parent, *args, **kwargs):
    """The parent's own forward, its layers called; in evaluation torch's encoder layer has a way around them."""
    with Called([getattr(parent, leaf) for leaf in leaves]):
        if not isinstance(parent, nn.TransformerEncoderLayer):
            return type(parent).forward(parent, *args, **kwargs)
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return type(parent).forward(parent, *args, **kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def expect_calls(trunk, layers):
    """Warn of those of the edited layers that the first training step does not call: there is no other sign of it."""
    for layer in layers:
        layer.register_forward_pre_hook(note_call)
    if layers:
        trunk.register_forward_hook(check_calls)


def note_call(layer, inputs):
    vars(layer)[CALLED] = True


def check_calls(trunk, inputs, output):
    if not (trunk.training and torch.is_grad_enabled()):
        return
    idle = [name for name, layer in trunk.named_modules()
            if note_call in layer._forward_pre_hooks.values() and CALLED not in vars(layer)]
    forget_calls(trunk)
    if idle:
        print_log(f'{len(idle)} adapted layers of {type(trunk).__name__} were not called in the first step, so that '
                  f'what is added to them does nothing: {", ".join(idle[:3])}. Their weight is read by itself, or '
                  'nothing goes through them here; leave them out of targets=', 'current', logging.WARNING)


def forget_calls(trunk):
    unhook(trunk, note_call, check_calls)
    for layer in trunk.modules():
        vars(layer).pop(CALLED, None)


def read_again(trunk):
    """Undo `call_through`, on a trunk that is merged."""
    unhook(trunk, enter, leave), forget_calls(trunk)
    for module in trunk.modules():
        bound = module.__dict__.get('forward')
        if getattr(getattr(bound, 'func', None), 'func', getattr(bound, 'func', None)) is forward:
            unbind(module, 'forward')


@functools.lru_cache(maxsize=None)
def weights_read(kind):
    """Names of the children of a class whose weight its forward reads."""
    if issubclass(kind, nn.MultiheadAttention):                         # handed to torch by its Python code
        return frozenset({'out_proj'} if kind.forward is nn.MultiheadAttention.forward else ())
    return frozenset(re.findall(r'\bself\.(\w+)\.weight\b(?!\.(?:dtype|device|shape|size)\b)', source(kind)))


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
