"""Registries of e3va: children of mmengine's roots, found from every library by the prefix `e3va.`.

mmengine imports `locations` the first time that a prefixed type is looked up, so a config needs no `custom_imports`.
"""
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import STRATEGIES as ROOT_STRATEGIES
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string

MODELS = Registry('model', parent=ROOT_MODELS, scope='e3va',
                  locations=['e3va.tuned', 'e3va.models.head', 'e3va.trunks.timm_trunk'])
DATASETS = Registry(
    'dataset', parent=ROOT_DATASETS, scope='e3va', locations=['e3va.datasets.fgvc', 'e3va.datasets.vtab'])
# Not among these: e3va.SAMSegmentor, e3va.KvasirSEG, which need mmsegmentation; configs name them in `custom_imports`.
TRANSFORMS = Registry('transform', parent=ROOT_TRANSFORMS, scope='e3va', locations=['e3va.datasets.polyp'])
METRICS = Registry('metric', parent=ROOT_METRICS, scope='e3va', locations=['e3va.datasets.polyp'])
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope='e3va', locations=[
    'e3va.train.cache', 'e3va.train.checkpoint', 'e3va.train.report', 'e3va.train.rng_state', 'e3va.train.stop',
    'e3va.delta.hook', 'e3va.gps.hook', 'e3va.spt.hook', 'e3va.e2vpt.hook', 'e3va.dmlora.hook', 'e3va.adamix.hook',
    'e3va.noah.hook', 'e3va.pear.hook'])
STRATEGIES = Registry('strategy', parent=ROOT_STRATEGIES, scope='e3va', locations=['e3va.train.shard'])
OPTIM_WRAPPERS = Registry('optim_wrapper', parent=ROOT_OPTIM_WRAPPERS, scope='e3va', locations=[
    'e3va.gps.optim', 'e3va.dmlora.optim', 'e3va.pear.optim'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optim_wrapper_constructor', parent=ROOT_CONSTRUCTORS, scope='e3va', locations=['e3va.train.constructor'])
# Built by `METHODS.get(type)(**options)`: `METHODS.build` would look the type up in a library's scope and warn.
METHODS = Registry('method', scope='e3va', locations=[
    'e3va.methods', 'e3va.highway', 'e3va.gps.method', 'e3va.spt.method', 'e3va.e2vpt.method', 'e3va.dmlora.method',
    'e3va.adamix.method', 'e3va.noah.method'])


def type_name(kind, root=ROOT_MODELS):
    """The `type` of a config as a name that mmengine's registry `root` and its children know; None stays None.

    Configs of the newer style hold classes, and in a file that was written from one their dotted paths. What is
    registered nowhere keeps its path, which registries import.
    """
    found = kind
    if isinstance(kind, str):
        found = get_object_from_string(kind) if kind.count('.') > 1 else None
    if found is None:
        return kind
    for registry in (root, *root.children.values()):
        for name, known in registry.module_dict.items():
            if known is found:
                return name if registry is root else f'{registry.scope}.{name}'
    return kind if isinstance(kind, str) else f'{kind.__module__}.{kind.__qualname__}'
