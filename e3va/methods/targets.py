"""Layers by their names in any module: the options `targets` and `also`, and what a method takes without them.

Names are read as HF PEFT reads its `target_modules`: 'all-linear', a list of name endings, or one regular expression
over full names.
"""
import logging
import re
from collections import Counter

from mmengine.logging import print_log
from torch import nn

from ..layers.adopted import pads_itself
from ..loading import shorten
from ..surgery import near
from ..trunks import head_entries

ALL = 'all-linear'
FORWARDS = (nn.Linear.forward, nn.Conv2d.forward, nn.MultiheadAttention.forward)
WRAPPERS = ('mmcv.cnn.bricks.wrappers', 'timm.layers.linear')           # their forward is the stock one
CLASSIFIERS = ('fc', 'head', 'heads', 'classifier')                     # where people look for one; timm's says itself


def target_names(targets):
    """The option `targets`: None, a string, or a tuple of strings; ValueError for anything else."""
    if targets is None or isinstance(targets, str):
        return check_pattern('targets', targets) if targets is not None else None
    return endings('targets', targets, "targets=['qkv', 'proj']")


def also_names(also):
    """The option `also` as a tuple of strings; ValueError for anything else."""
    names = endings('also', (also,) if isinstance(also, str) else also or (), "also=['patch_embed']", least=0)
    return tuple(check_pattern('also', name) for name in names)


def endings(option, names, example, least=1):
    if not isinstance(names, (list, tuple, set)) or len(names) < least or not all(
            isinstance(name, str) and name for name in names):
        raise ValueError(f'{option} is a list of names, e.g. {example}, or a regular expression over full names, not '
                         f'{names!r}')
    return tuple(names)


def check_pattern(option, pattern):
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f'{option}={pattern!r} is no regular expression ({error}); endings of names are a list, e.g. '
                         f"{option}=['qkv', 'proj']") from error
    return pattern


def ends(name, ending):
    """PEFT's rule for an entry of a list."""
    return name == ending or name.endswith(f'.{ending}')


def matches(name, targets):
    """Whether a full name is among `targets`, a tuple of endings or a regular expression."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(ends(name, one) for one in targets)


def find_also(module, names):
    """frozenset of the modules, parameters and buffers that `also` names, all that is inside them included.

    Each of `names` is the ending of a name, or a regular expression over full names. ValueError for one that matches
    nothing, or nothing that could train.
    """
    modules = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    every = modules + sorted(parameters) + [name for name, _ in module.named_buffers(remove_duplicate=False)]
    found = set()
    for one in names:
        places = tuple(name for name in every if ends(name, one) or re.fullmatch(one, name))
        inside = {name for name in every if name in places or name.startswith(tuple(f'{place}.' for place in places))}
        if not inside & parameters:
            what = f'has no parameters in {shorten(places, 3)}, which' if places else 'has nothing that'
            raise ValueError(f'also={one!r}: {type(module).__name__} {what} it names; '
                             f'{near(one, sorted(parameters) + modules)}')
        found |= inside
    return frozenset(found)


def check_layer(trunk, name, layer, method):
    """ValueError where a layer is not a plain one that computes with the weight that it holds."""
    weight, kind = layer._parameters.get('weight'), type(layer)
    if isinstance(layer, nn.MultiheadAttention):
        weight = layer.in_proj_weight
    if kind.forward not in FORWARDS and not kind.__module__.startswith(WRAPPERS) and not pads_itself(kind):
        why = f'is a {kind.__name__}, which computes something else than a plain layer with its weight'
    elif type(weight) is not nn.Parameter or not weight.is_floating_point():
        why = (f'is a {kind.__name__} whose weight is quantised, or made of others: '
               f'{"no parameter" if weight is None else type(weight).__name__}')
    else:
        return
    raise ValueError(f'{name} of {type(trunk).__name__} {why}: {type(method).__name__} cannot change that; name other '
                     'layers by targets=, or take another trunk')


def named(trunk, method):
    """{name: module} of what `targets` names and a method adapts.

    Names are those of the module that was given to `tune`.
    """
    tuning, targets = trunk.tuning, method.targets
    every = {name: module for name, module in trunk.named_modules() if name}
    full = {name: f'{tuning.prefix}{name}' for name in every}
    if targets == ALL:
        found = [name for name, module in every.items() if isinstance(module, nn.Linear)]
    else:
        found = [name for name in every if matches(full[name], targets)]
    fit = {name: every[name] for name in found if method.adapts(every[name])}
    own = [full[name] for name in every if method.adapts(every[name])]
    if not found:
        hint = alike(targets if isinstance(targets, str) else targets[0], own or list(full.values()))
        if targets != ALL and isinstance(targets, str) and re.fullmatch(r'[\w.]+', targets):
            hint += (f'. One string is a regular expression over full names; endings are a list: targets=[{targets!r}]')
        raise ValueError(f'targets={shown(targets)}: no layer of {type(trunk).__name__} has such a name; {hint}')
    for one in targets if isinstance(targets, tuple) else ():
        same = [name for name in found if ends(full[name], one)]
        if not same:
            print_log(f'targets: {one!r} matches nothing in {type(trunk).__name__}; '
                      f'{alike(one, own or list(full.values()))}', 'current', logging.WARNING)
        elif not any(name in fit for name in same):
            raise ValueError(unfit(trunk, f'[{one!r}]', same, every, method))
    if not fit:
        raise ValueError(unfit(trunk, shown(targets), found, every, method))
    left = frozen_layers(trunk, fit, guess=targets == ALL)
    if not left:
        raise ValueError(f'targets={shown(targets)} names {shorten(fit, 3)} of {type(trunk).__name__} alone, which '
                         'trains whole anyway, as a classifier or by also=: name others')
    return left


def alike(given, names):
    """The full names and endings most like what was given, as the tail of an error message."""
    return near(given, dict.fromkeys([name.rpartition('.')[2] for name in names] + names))


def shown(targets):
    return repr(list(targets) if isinstance(targets, tuple) else targets)


def unfit(trunk, targets, names, every, method):
    kinds = shorten((f'{name} ({type(every[name]).__name__})' for name in names), 3)
    return (f'targets={targets} names {kinds} of {type(trunk).__name__}, and {type(method).__name__} adapts '
            f'{kinds_of(method)}. Norms and others train whole by also=')


def kinds_of(method):
    return ' and '.join(kind.__name__ for kind in method.adapted if kind is not nn.MultiheadAttention)  # by roles alone


def frozen_layers(trunk, layers, guess=True):
    """Those of {name: layer} that do not train whole, as a classifier or by `also`.

    Args:
        guess (bool): leave out, too, the `out_proj` of torch's attentions, of which the weight alone is read, and what
            is at the usual place of a classifier in a module that does not say what its own is. That stays frozen:
            `also` trains it.
    """
    if guess:                                                           # torch reads its weight: see `layers.read`
        layers = {name: layer for name, layer in layers.items() if not isinstance(
            trunk.get_submodule(name.rpartition('.')[0]), nn.MultiheadAttention)}
    whole = trunk.tuning.also | (frozenset() if trunk.tuning.rest else head_entries(trunk))
    left = classifiers(trunk, layers) if guess else ()
    return {name: layer for name, layer in layers.items()
            if not whole & {f'{name}.weight', name} and name not in left}       # its bias alone may train beside


def classifiers(trunk, names):
    """Those of some layers' names that are at the usual place of a classifier, where a trunk does not say its own."""
    said = trunk.tuning.parts is not None or hasattr(trunk, 'get_classifier')
    return set() if said else {name for name in names if name.partition('.')[0] in CLASSIFIERS}


def usual(trunk, method):
    """{name: module} of what a method takes in a trunk of no known family: its linears, else its convolutions.

    Not the classifier's, nor grouped convolutions (depthwise ones have next to no weights).
    """
    if method.config.get('roles'):
        raise ValueError(f'roles={method.roles}: e3va does not know the roles of the layers of '
                         f'{type(trunk).__module__}.{type(trunk).__name__}; name layers by targets=, as in HF PEFT, '
                         'or drop roles for all linear layers')
    every = frozen_layers(trunk, {name: module for name, module in trunk.named_modules() if method.adapts(module)})
    found = {name: module for name, module in every.items() if isinstance(module, nn.Linear)} or {
        name: module for name, module in every.items() if getattr(module, 'groups', 1) == 1}
    if not found:
        raise ValueError(f'{type(method).__name__} finds no layer in {type(trunk).__name__}: it adapts '
                         f'{kinds_of(method)}. NormTuning and BitFit train norms and biases, Fixed with also= '
                         'any module')
    return found


def say(trunk, found, count):
    """One line: what a method took by itself in a trunk of no known family."""
    kinds = Counter(type(module).__name__ for module in found.values())
    method = type(trunk.tuning.method).__name__
    print_log(f'{method} on {type(trunk).__name__}, a trunk whose family e3va does not know: '
              f'{" and ".join(f"{count} {kind}" for kind, count in kinds.items())}, the classifier left out '
              f'(also= trains it) ({shorten(found, 3)}), {count:,} parameters; name others by targets=', 'current')
