"""What each method costs on a config: counted in turn, timed side by side."""
import contextlib
import copy
import os
import traceback
from functools import partial
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope, init_default_scope

import e3va

from ..tuned import find_tuned
from . import batch, count, inference, spec
from .clock import interleaved, on, seconds, spread
from .step import Step, settle

DTYPES = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)


def measure(cfg, specs, size=None, images=2, steps=5, dtype='fp32', say=lambda text: None):
    """Measure some methods on one config, with random weights and generated ground truth.

    Args:
        cfg (Config): of mmdet, mmseg or mmpretrain; its model may be tuned already.
        specs (list of Spec): see `spec.parse`.
        size (tuple): (H, W) of the images in px. Default: what the config trains on.
        images (int): batch.
        steps (int): timed steps of each method, after one that is not timed.
        dtype (str): 'fp32', or 'bf16' or 'fp16' for autocast.
        say (callable): is told what is being done.

    Returns:
        list of dict: a row for each method; for the keys see `table.COLUMNS`.

    Raises:
        ValueError: something that cannot be measured.
    """
    for name, value in (('--steps', steps), ('--batch', images), ('--size', min(size or (1, )))):
        if value < 1:
            raise ValueError(f'{name} must be at least 1, not {value}')
    device = get_device()
    if dtype == 'fp16' and device == 'cpu':
        raise ValueError('--dtype fp16 needs a GPU, and torch finds none here; bf16 works on the CPU')
    cfg = spec.stock(cfg)
    configs = {each.label: spec.tuned(cfg, each).model for each in specs}
    size = tuple(size or batch.default_size(cfg))
    data = batch.generate(cfg, size, images)
    MMLogger.get_instance('e3va', log_level='ERROR')            # loads have much to say
    init_default_scope(cfg.default_scope)
    models = {}
    for label, config in configs.items():
        say(f'building {label}')
        batch.fix_size(config, size)
        models[label] = build(config, next(iter(models.values()), None))
    shape = f'{size[0]}x{size[1]}, batch {images}'
    common = dict(height=size[0], width=size[1], batch=images, dtype=dtype, steps=steps, device=device_name(device),
                  threads=torch.get_num_threads(), torch=torch.__version__)
    dtype = DTYPES[dtype]

    rows = {}
    for label, model in models.items():
        say(f'counting {label}')
        with failing(f'{label} cannot train at {shape}'), on(device, model):
            settle(model, data)
            report = e3va.report(model)
            rows[label] = dict(method=label, trained=report['trained'], trained_head=report['head'],
                               delta_bytes=report['delta_bytes'], **count.training(model, data, dtype))
    with on(device, *models.values()):
        times = interleaved({label: partial(step_seconds, model, data, dtype) for label, model in models.items()},
                            steps, say)
    for label, row in rows.items():
        row.update(spread('step', times[label]))

    first = next(iter(models.values()))
    image = torch.randn(first.data_preprocessor(copy.deepcopy(data), True)['inputs'].shape).to(device)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        trunks = dict(stock=registry.build(cfg.model.backbone))
    trunks.update((label, inference.final(find_tuned(model)[1])) for label, model in models.items())
    found = inference.compare(trunks, image, dtype, steps, say)
    for label, row in rows.items():
        row.update(found[label], **ratios(row, rows), **common)
    return list(rows.values())


def build(config, like=None):
    """A model of a config, with the stock weights of the model `like`, else with random ones of its own."""
    with MODELS.switch_scope_and_registry(DefaultScope.get_current_instance().scope_name) as registry:
        model = revert_sync_batchnorm(registry.build(copy.deepcopy(config)))
    if like is None:
        model.init_weights()
    else:
        added = added_names(like) | added_names(model)
        model.load_state_dict({name: value for name, value in like.state_dict().items() if name not in added},
                              strict=False)
    return model


def added_names(model):
    """Names of the entries that the method has added."""
    prefix, trunk = find_tuned(model)
    return {prefix + name for name in trunk.state_dict() if name not in trunk.tuning.keys}


@contextlib.contextmanager
def failing(text):
    """What a library raises deep inside, e.g. where maps are too small for its windows, as one line."""
    try:
        yield
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = str(error).strip().splitlines() or ['no message']
        raise ValueError(f'{text}: {type(error).__name__}: {said[0]} ({Path(frame.filename).name}:{frame.lineno}). '
                         'Too small a --size or --batch?') from error


def step_seconds(model, data, dtype):
    with Step(model, data, dtype) as step:
        return seconds(step.run, step.device)


def ratios(row, rows):
    """Against the rows of 'fixed' and 'full', where these were measured."""
    fixed, full = rows.get('fixed'), rows.get('full')
    out = {f'step_to_{name}': row['step_ms'] / other['step_ms']
           for name, other in (('fixed', fixed), ('full', full)) if other}
    if full:
        out['total_to_full'] = row['total_bytes'] / full['total_bytes']
    if fixed and full and full['saved_bytes'] > fixed['saved_bytes']:
        out['saved_fraction'] = ((row['saved_bytes'] - fixed['saved_bytes'])
                                 / (full['saved_bytes'] - fixed['saved_bytes']))
    return out


def device_name(device):
    if device == 'cuda':
        return torch.cuda.get_device_name()
    return f'{len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()}-core CPU'
