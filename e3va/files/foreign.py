"""What a file may name: classes that are registered here, and plain values. Nothing that it names is imported.

mmengine's registries import any dotted name that they do not know, so `type='os.system'` runs it, in a trunk's config
and in every config nested in it; other builders import what other keys say. What is built takes no more memory than a
file that is at hand has values for, and no pattern is searched for that could take for ever.
"""
import contextlib
import inspect
import json
import math
import os
import re

import torch
from mmengine.registry import MODELS as ROOT
from mmengine.registry import registry as lookup
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.utils._python_dispatch import TorchDispatchMode

TEXT = 4 * 2 ** 20                                                      # bytes: no header and no config is longer
NUMBER = 2 ** 16                                                        # no size that a file says is larger
NO_SIZES = 'seed', 'budget', 'step'                                     # options of methods that take no memory
# Where the layers and backbones of the libraries stand; a class of the user's own package is the user's.
OURS = re.compile(r'((mmdet|mmseg|mmpretrain)\.models\.(backbones|layers|utils)|mmcv\.(cnn|ops)|torch\.nn|e3va)\b')
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain', 'mmcv', 'mmengine', 'torch', 'timm', 'transformers')
# Options by which stock classes load files, or fetch them.
LOADS = ('init_cfg', 'pretrained', 'checkpoint_path', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir')


# ---- Texts -----------------------------------------------------------------------------------------------------------


def read_text(path, start=0, length=None):
    """Bytes of an ordinary file, all of them or `length` of them; ValueError for more than a text has (TEXT)."""
    if not os.path.isfile(path):                                        # a pipe would be waited for
        raise ValueError(f'{path} is no ordinary file')
    length = os.path.getsize(path) - start if length is None else length
    if length > TEXT:
        raise ValueError(f'it says that {length} bytes are its text, and the longest that is read has {TEXT}')
    with open(path, 'rb') as file:
        file.seek(start)
        return file.read(length)


def parse(text):
    """The value of a JSON text; ValueError for none, and for a key that is there twice: readers differ in which counts.
    """
    def once(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f'{next(name for name in names if names.count(name) > 1):.100} is there twice')
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError('it is nested too deep') from error


def check_options(config):
    """ValueError for options of a method out of a file that would take for ever, or all memory."""
    for name, value in config.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str):
                check_pattern(f'method.{name}', one)
            elif isinstance(one, int) and abs(one) > NUMBER and name not in NO_SIZES:
                raise ValueError(f'method.{name} is {one}, and no size in a file is larger than {NUMBER}')


def check_pattern(name, pattern):
    """ValueError for a regular expression that a search may take for ever on: a repeated group, or many repetitions.

    Two repetitions, one in the other, take exponential time on a name that does not fit; n in a row a power of n.
    """
    plain = re.sub(r'\\.|\[[^\]]*\]', 'x', str(pattern))
    if re.search(r'\)[*+?{]', plain) or len(re.findall('[*+{]', plain)) > 4:
        raise ValueError(f'{name}={pattern!r:.100} may take for ever to search for: name the layers themselves')


# ---- Classes ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_imports():
    """Registries find what is registered, and nothing else."""
    stock = lookup.get_object_from_string
    lookup.get_object_from_string = nothing
    try:
        yield
    finally:
        lookup.get_object_from_string = stock


def nothing(name):
    return None


def registered(name):
    """The class (or function of e3va) of a name in OpenMMLab's registries of models; None for any other."""
    with no_imports():
        found = ROOT.get(name)
    own = getattr(found, '__module__', '').partition('.')[0] not in LIBRARIES
    kind = inspect.isclass(found) and issubclass(found, nn.Module)
    if OURS.match(getattr(found, '__module__', '')):
        return found if kind or found.__module__.startswith('e3va.') else None
    return found if kind and own else None


def trunk_config(config):
    """A trunk's config out of a file, as one that can be built: it loads nothing and names nothing unknown.

    `init_cfg` stays where it says how the trunk's library reads a file (its prefix); it is not acted on by a build.

    Raises:
        ValueError: a type that is no registered class, or a dotted name anywhere, which some builder would import.
    """
    if not isinstance(config, dict) or not isinstance(config.get('type'), str):
        raise ValueError(f"the trunk's config names no type: {str(config):.200}")
    init_cfg = config.get('init_cfg')
    clean = without_loads(config)
    check(clean, 'trunk.config')
    if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
        clean['init_cfg'] = {key: value for key, value in init_cfg.items()
                             if key in ('type', 'checkpoint', 'prefix') and isinstance(value, str)}
    if clean['type'].rpartition('.')[2] == 'TIMMBackbone':
        clean['pretrained'] = False                                     # in mmseg it is True where nothing is said
    return clean


def without_loads(value):
    if isinstance(value, dict):
        return {key: without_loads(inner) for key, inner in value.items() if key not in LOADS}
    return type(value)(map(without_loads, value)) if isinstance(value, (list, tuple)) else value


def check(value, where):
    """ValueError for the first value at any depth that a file may not hold."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == 'type' and not (isinstance(inner, str) and registered(inner)):
                raise ValueError(f'{where}.type is {str(inner)[:100]!r}, which is no registered backbone or layer: it '
                                 'is not executed. Is the library, or your module with that class, imported?')
            check(inner, f'{where}.{key}')
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            check(inner, f'{where}.{i}')
    elif isinstance(value, int) and abs(value) > NUMBER:
        raise ValueError(f'{where} is {value}, and no size in a file is larger than {NUMBER}')
    elif isinstance(value, str):
        tag = where.endswith(('.name', '.model_name'))                  # timm's: vit_small_patch14_dinov2.lvd142m
        if ':' in value or (re.search(r'\w\.\w', value) and not tag and not registered(value)):
            raise ValueError(f'{where} is {value[:100]!r}, a name that would be imported or fetched: a file may name '
                             'registered classes alone')


class Small(TorchDispatchMode):
    """ValueError for a tensor of more than so many values, before there is memory for it."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        named = [given for argument, given in zip(func._schema.arguments, args) if argument.name == 'size']
        shapes = [given.shape for given in args if isinstance(given, Tensor)]
        with contextlib.suppress(RuntimeError):                         # shapes that do not meet: a product of matrices
            named.append(torch.broadcast_shapes(*shapes))
        check_size(max((math.prod(shape) for shape in named), default=0), self.values)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def at_most(values):
    """ValueError where the modules that are built in this context would have more values, parameters or buffers."""
    seen = dict(parameters=0, buffers=0)

    def counter(kind):
        def count(module, name, value):
            seen[kind] += value.numel() if value is not None else 0
            check_size(seen[kind], values)
        return count

    hooks = [registration.register_module_parameter_registration_hook(counter('parameters')),
             registration.register_module_buffer_registration_hook(counter('buffers'))]
    try:
        with Small(values):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def check_size(size, values):
    if size > values:
        raise ValueError(f'what the file describes is larger than the weights that it is for: {values} values would '
                         'fit into those at hand')


def build_trunk(config):
    """The stock trunk of a config out of a file; ValueError as `trunk_config`, or where it cannot be built."""
    config = trunk_config(config)
    try:
        with no_imports():
            return ROOT.build(config)
    except Exception as error:                                          # whatever a constructor makes of odd values
        raise ValueError(f"the trunk's config cannot be built, {type(error).__name__}: {error}. It is "
                         f'{str(config):.300}') from error
