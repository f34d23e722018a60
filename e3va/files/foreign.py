"""What a file may name: classes that are registered here, and plain values. Nothing that it names is imported.

mmengine's registries import any dotted name that they do not know, so `type='os.system'` runs it, in a trunk's config
and in every config nested in it; other builders import what other keys say.
"""
import contextlib
import inspect
import re

from mmengine.registry import MODELS as ROOT
from mmengine.registry import registry as lookup
from torch import nn

# Where the layers and backbones of the libraries stand; a class of the user's own package is the user's.
OURS = re.compile(r'((mmdet|mmseg|mmpretrain)\.models\.(backbones|layers|utils)|mmcv\.(cnn|ops)|torch\.nn|e3va)\b')
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain', 'mmcv', 'mmengine', 'torch', 'timm', 'transformers')
# Options by which stock classes load files, or fetch them.
LOADS = ('init_cfg', 'pretrained', 'checkpoint_path', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir')


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
    elif isinstance(value, str):
        tag = where.endswith(('.name', '.model_name'))                  # timm's: vit_small_patch14_dinov2.lvd142m
        if ':' in value or (re.search(r'\w\.\w', value) and not tag and not registered(value)):
            raise ValueError(f'{where} is {value[:100]!r}, a name that would be imported or fetched: a file may name '
                             'registered classes alone')


def build_trunk(config):
    """The stock trunk of a config out of a file; ValueError as `trunk_config`, or where it cannot be built."""
    config = trunk_config(config)
    try:
        with no_imports():
            return ROOT.build(config)
    except Exception as error:                                          # whatever a constructor makes of odd values
        raise ValueError(f"the trunk's config cannot be built, {type(error).__name__}: {error}. It is "
                         f'{str(config):.300}') from error
