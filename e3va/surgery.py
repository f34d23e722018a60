"""Find, swap, attach, rebind: the only code that edits somebody else's module."""
import difflib
import functools
import re

from torch import nn


def near(given, names, most=5):
    """The names most like `given`, as the tail of an error message; capitals are small letters."""
    small = {}
    for name in map(str, names):
        small.setdefault(name.lower(), name)
    close = [small[name] for name in difflib.get_close_matches(str(given).lower(), small, n=most, cutoff=0.4)]
    return f'near: {", ".join(close)}' if close else f'there are: {", ".join(map(str, list(names)[:most]))}'


def find(trunk, pattern, kind=nn.Module):
    """Modules of type `kind` whose whole dotted name matches `pattern`, as {name: module} in the trunk's order.

    Raises ValueError when there is none: a pattern that matches nothing would train the wrong thing silently.
    """
    found = {name: module for name, module in trunk.named_modules()
             if re.fullmatch(pattern, name) and isinstance(module, kind)}
    if not found:
        names = [name for name, module in trunk.named_modules() if name and isinstance(module, kind)]
        raise ValueError(f'no {kind.__name__} of {type(trunk).__name__} matches the pattern {pattern!r}; '
                         f'{near(pattern, names)}')
    return found


def replace(trunk, name, new):
    """Put the module `new` where `trunk` has the module `name`, at all of its places; None takes it away."""
    parent, _, leaf = name.rpartition('.')
    if new is None:
        delattr(trunk.get_submodule(parent), leaf)
        return
    old, waiting, seen = trunk.get_submodule(name), [trunk], set()
    while waiting:                                                      # a layer that two modules share stays shared
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for leaf, child in list(module._modules.items()):
            if child is old:
                setattr(module, leaf, new)
            elif child is not None:
                waiting.append(child)


def swap(trunk, pattern, make, kind=nn.Linear):
    """Replace every `kind` whose whole name matches `pattern` by `make(old)`; ValueError when none matches."""
    for name, old in find(trunk, pattern, kind).items():
        replace(trunk, name, make(old))


def rebind(module, name, function):
    """Let `module.name(...)` call `function(module, ...)`, a top-level function.

    The class stays as it is, so that code that asks for it (legacy key maps, layer decay) still recognises the trunk.
    A partial follows its module through deepcopy and pickle; a closure would keep pointing at the original.
    """
    module.__dict__[name] = functools.partial(function, module)


def wrap(module, name, function):
    """Let `module.name(...)` call `function(before, module, ...)`; `called(before, module)` is what it was."""
    rebind(module, name, functools.partial(function, module.__dict__.get(name) or name))


def called(before, module):
    """What a wrapped name called before: another rebound function, or the class's own."""
    return functools.partial(getattr(type(module), before), module) if isinstance(before, str) else before


def unwrap(module, function):
    """Undo `wrap` by a function (whatever it was partial to) in a module and those inside it."""
    for one in module.modules():
        for name, bound in list(one.__dict__.items()):
            if getattr(bound, 'func', None) is function:                # partials of partials are flat
                before = bound.args[-2]
                one.__dict__.pop(name)
                if not isinstance(before, str):
                    one.__dict__[name] = before


def unhook(module, *functions):
    """Take functions out of all hooks of a module and of those inside it."""
    for one in module.modules():
        for hooks in (one._forward_pre_hooks, one._load_state_dict_pre_hooks, one._load_state_dict_post_hooks,
                      one._state_dict_hooks, one._forward_hooks):
            for key, hook in list(hooks.items()):
                hook = getattr(hook, 'hook', hook)                      # torch wraps those that get the module
                if getattr(hook, 'func', hook) in functions:            # a partial is known by its function
                    del hooks[key]
                    one._forward_hooks_always_called.pop(key, None)


def unbind(module, name):
    """Give `module.name` back to its class."""
    module.__dict__.pop(name, None)
