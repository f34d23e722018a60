"""What a file may name: classes that are registered here, and plain values. Nothing that it names is imported.

mmengine's registries import any dotted name that they do not know, so `type='os.system'` runs it, in a trunk's config
and in every config nested in it; other builders import what other keys say. What is built takes no more memory than a
file that is at hand has values for, and no pattern is searched for that could take for ever.
"""
import contextlib
import importlib
import inspect
import json
import math
import os
import re

import torch
from mmengine.registry import MODELS as ROOT
from mmengine.registry import TASK_UTILS, TRANSFORMS, DefaultScope
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
LOADS = ('init_cfg', 'pretrained', 'checkpoint_path', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir',
         'backend_args', 'file_client_args')
# The same of what makes a task: heads, what they are made of, and what happens to an image. Left out is what fetches a
# language model, reads the config of a teacher, or evaluates a text (torchvision's transforms, trackers).
TASKS = re.compile(
    r'(mmdet\.models\.(backbones|data_preprocessors|dense_heads|detectors|layers|losses|necks|roi_heads|seg_heads|'
    r'task_modules\.(assigners|coders|prior_generators|samplers)|utils)|'
    r'mmseg\.models\.(backbones|data_preprocessor|decode_heads|losses|necks|segmentors|utils)|'
    r'mmpretrain\.models\.(backbones|classifiers|heads|losses|necks|utils\.(data_preprocessor|norm|layer_scale))|'
    r'mmcv\.(cnn|ops|transforms)|(mmdet|mmseg|mmpretrain)\.datasets\.transforms|mmengine\.(model|utils\.dl_utils)|'
    r'torch\.nn|e3va)\b')
FETCHES = re.compile(r'HuggingFace|Timm(Classifier|Backbone)|TIMM|Distill|Albu|Inferencer|Bert')
TUNED = 'e3va.Tuned', 'Tuned'
BESIDE_MMSEG = 'e3va.trunks.pyramid', 'e3va.models.sam'                 # a run's config has them in custom_imports
FUNCTIONS = 'nms', 'soft_nms', 'nms_match', 'RoIAlign', 'RoIPool'      # of mmcv.ops, which evaluates these names


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


def known_to(root, name):
    """What a registry, or its child of the current scope, has under a name; None."""
    with no_imports(), root.switch_scope_and_registry(None) as registry:
        return registry.get(name)


def registered(name):
    """The class (or function of e3va) of a name in OpenMMLab's registries of models; None for any other."""
    found = known_to(ROOT, name)
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
    clean = without_loads(config)
    check(clean, 'trunk.config')
    clean.update(pretrained_init(config))
    if clean['type'].rpartition('.')[2] == 'TIMMBackbone':
        clean['pretrained'] = False                                     # in mmseg it is True where nothing is said
    return clean


def task_config(config):
    """What a file says of its task, as what can be built: dict(scope, model, pipeline), which loads nothing.

    Raises:
        ValueError: a type that is no registered class of a library's models or transforms, a dotted name anywhere.
    """
    wrong = 'the recorded config is not dict(scope=..., model=dict(type=...), pipeline=[dict(type=...), ...])'
    if not (isinstance(config, dict) and set(config) == {'scope', 'model', 'pipeline'}
            and isinstance(config['model'], dict) and isinstance(config['model'].get('type'), str)
            and isinstance(config['pipeline'], list)
            and all(isinstance(step, dict) and isinstance(step.get('type'), str) for step in config['pipeline'])):
        raise ValueError(f'{wrong}: {str(config):.200}')
    scope = config['scope']
    if scope not in ('mmdet', 'mmseg', 'mmpretrain'):
        raise ValueError(f'{wrong}: scope={str(scope)[:50]!r} is not mmdet, mmseg or mmpretrain')
    clean, given = without_loads(config), config['model'].get('backbone')
    backbone = clean['model'].get('backbone')
    import_library(scope)
    with DefaultScope.overwrite_default_scope(scope):
        method = None
        if isinstance(backbone, dict) and backbone.get('type') in TUNED:
            if not isinstance(backbone.get('trunk'), str) or not registered(backbone['trunk']):
                raise ValueError(f'model.backbone.trunk is {str(backbone.get("trunk"))[:100]!r}, which is no '
                                 'registered backbone')
            method = backbone.pop('method', None)
            check_options(method if isinstance(method, dict) else dict(type=method))
        check(clean['model'], 'model', piece)
        check(clean['pipeline'], 'pipeline', piece)
    if method is not None:
        backbone['method'] = method
    if isinstance(given, dict):
        backbone.update(pretrained_init(given))
    return clean


def import_library(scope):
    """Have the models and transforms of an OpenMMLab library registered, and ours that need mmsegmentation."""
    for part in ('models', 'datasets.transforms'):
        importlib.import_module(f'{scope}.{part}')
    with contextlib.suppress(ImportError):
        for place in BESIDE_MMSEG:
            importlib.import_module(place)


def pretrained_init(config):
    """dict(init_cfg=...) with what says how the trunk's library reads a file; a build does not act on it."""
    init_cfg = config.get('init_cfg')
    if not isinstance(init_cfg, dict) or init_cfg.get('type') != 'Pretrained':
        return {}
    return dict(init_cfg={key: value for key, value in init_cfg.items()
                          if key in ('type', 'checkpoint', 'prefix') and isinstance(value, str)})


def piece(name):
    """The class (or TimmTrunk) of a name in the registries of models, parts and transforms; None for any other."""
    if name in FUNCTIONS:
        return name
    found = next(filter(None, (known_to(root, name) for root in (ROOT, TASK_UTILS, TRANSFORMS))), None)
    place = getattr(found, '__module__', '')
    if name in TUNED and place == 'e3va.tuned' or place == 'e3va.trunks.timm_trunk':
        return found
    if not inspect.isclass(found) or FETCHES.search(found.__name__) or '/' in name:
        return None
    return found if TASKS.match(place) or place.partition('.')[0] not in (*LIBRARIES, 'torchvision') else None


def without_loads(value):
    if isinstance(value, dict):
        return {key: without_loads(inner) for key, inner in value.items() if key not in LOADS}
    return type(value)(map(without_loads, value)) if isinstance(value, (list, tuple)) else value


def check(value, where, known=registered):
    """ValueError for the first value at any depth that a file may not hold; `known` finds the class of a type."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == 'type' and not (isinstance(inner, str) and known(inner)):
                raise ValueError(f'{where}.type is {str(inner)[:100]!r}, which is no registered backbone or layer: it '
                                 'is not executed. Is the library, or your module with that class, imported?')
            check(inner, f'{where}.{key}', known)
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            check(inner, f'{where}.{i}', known)
    elif isinstance(value, int) and abs(value) > NUMBER:
        raise ValueError(f'{where} is {value}, and no size in a file is larger than {NUMBER}')
    elif isinstance(value, str):
        tag = where.endswith(('.name', '.model_name'))                  # timm's: vit_small_patch14_dinov2.lvd142m
        if ':' in value or (re.search(r'\w\.\w', value) and not tag and not known(value)):
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
