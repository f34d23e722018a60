"""The config that a delta belongs to, as data: which library, the model, and what happens to an image before it.

It is a text of plain Python values, which is read and not run: JSON has no tuples, and transforms tell them from lists.
"""
import ast

from mmengine.config import ConfigDict
from mmengine.registry import MODELS, TASK_UTILS, TRANSFORMS

from ..files import foreign
from ..registry import type_name


def told(cfg):
    """What a delta says of the config of its run, a text; None where there is no config, or it holds more than values.

    Args:
        cfg (Config or dict): `model`, and `test_dataloader` (or `val_dataloader`) or `test_pipeline`.
    """
    if cfg is None or not isinstance(cfg.get('model'), dict) or 'type' not in cfg['model']:
        return None
    preprocessor = dict(cfg['model']).get('data_preprocessor') or cfg.get('data_preprocessor')
    model = {**cfg['model'], 'data_preprocessor': preprocessor, 'train_cfg': None}
    text = repr(plain(dict(scope=cfg.get('default_scope'), model=model, pipeline=pipeline_of(cfg))))
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return text


def pipeline_of(cfg):
    """The transforms of the images that a config tests on, without those that read annotations."""
    data = (cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}).get('dataset') or {}
    while not data.get('pipeline') and (data.get('dataset') or data.get('datasets')):
        data = data.get('dataset') or data['datasets'][0]
    steps = data.get('pipeline') or cfg.get('test_pipeline') or []
    return [step for step in steps if not str(type_name(step['type'], TRANSFORMS)).rpartition('.')[2].startswith(
        ('LoadAnnotations', 'LoadPanoptic', 'LoadProposals'))]


def plain(value):
    """A config's value as plain ones: classes become their names, mmengine's dicts dicts."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()
                if (key != '_scope_' or inner) and key != 'batch_augments'}             # these are for training
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else list(map(plain, value))
    if isinstance(value, type):
        return next((name for name in (type_name(value, root) for root in (MODELS, TASK_UTILS, TRANSFORMS))
                     if name.count('.') < 2), f'{value.__module__}.{value.__qualname__}')
    return value


def whole(cfg):
    """What `heard` gives as the dict of a config, for the libraries' inferencers; it names no data."""
    pipeline = plain(cfg.pipeline)
    kind = dict(type='BaseDetDataset') if cfg.scope == 'mmdet' else {}  # of which DetInferencer asks the colours
    drawn = dict(mmdet='DetLocalVisualizer', mmseg='SegLocalVisualizer').get(cfg.scope)
    return dict(default_scope=cfg.scope, model=plain(cfg.model), test_pipeline=pipeline,
                test_dataloader=dict(dataset=dict(kind, pipeline=pipeline)),
                **(dict(visualizer=dict(type=drawn, vis_backends=[])) if drawn else {}))


def heard(text):
    """The config that a delta tells, ConfigDict(scope, model, pipeline); ValueError for none that may be built."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f'its config is no text of plain values: {error}') from error
    return ConfigDict(foreign.task_config(found))
