"""A task: the model of a delta or checkpoint around the trunk that is in memory."""
import dataclasses
import os
import threading
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ..delta import file as delta_file
from ..delta.address import place
from ..delta.base import find_base, inside, size_of
from ..delta.config import heard, pipeline_of, plain
from ..delta.extract import frozen
from ..delta.file import fingerprint
from ..delta.load import fill, records_of
from ..delta.mix import weakened
from ..delta.scheme import LEAST
from ..files import foreign
from ..files.checkpoint import recorded_config
from ..loading import demand, shorten
from ..surgery import rebind
from ..trunks.mapped import sharing
from ..tuned import find_tuned
from .images import Transforms
from .trunk import release
from .written import Written, entries

BUILDING = threading.Lock()                                             # scopes and registries are of the process


@dataclasses.dataclass(eq=False)
class Task:
    """What serves under a name.

    Attributes:
        model (nn.Module): of its library, in eval.
        trunk (nn.Module): the tuned backbone in it.
        transforms (Transforms): of its images.
        meta (dict): classes and palette.
        written (Written): entries that it has in the trunk's own weights; else None.
        highway (int): number of the pass that its highway goes beside; else None.
        removed (bool): it answers no more.
    """

    name: str
    model: nn.Module
    trunk: nn.Module
    transforms: Transforms
    meta: dict
    written: Written = None
    highway: Any = None
    removed: bool = False

    @property
    def method(self):
        return type(self.trunk.tuning.method).__name__

    @property
    def classes(self):
        return tuple(self.meta.get('classes') or ())

    def nbytes(self, pool):
        """Bytes of what is the task's own."""
        shared = {value.untyped_storage().data_ptr() for value in pool.tensors.values()}
        own = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
               for value in (*self.model.parameters(), *self.model.buffers())}
        written = self.written.nbytes if self.written else 0
        return written + sum(count for at, count in own.items() if at not in shared)


def open_task(name, source, pool, config=None, base=None, device='cpu', resting=None):
    """The `Task` of a delta or a checkpoint; ValueError where it is of another trunk, or cannot be read or built.

    Args:
        source (str): a delta, its folder or `e3va://` address, or a checkpoint of a tuned model.
        pool (Pool): of the trunk that is in memory; empty before the first task.
        config (Config or str): of the task. Default: what the delta or checkpoint says.
        base (str): file or URL of the trunk's weights, where they are not in memory yet.
        resting: a context in which the trunk's weights are its own.
    """
    source = str(source)
    checkpoint = source.endswith(('.pth', '.pt')) or source.startswith(('http://', 'https://'))
    opened = of_checkpoint if checkpoint else of_delta
    with BUILDING, resting() as hold, torch.random.fork_rng(devices=()):
        model, scope, steps, meta = opened(source, pool, config, base, device)
        _, trunk = find_tuned(model)
        model.eval().requires_grad_(False)
        written = entries(trunk)
        with DefaultScope.overwrite_default_scope(scope):
            task = Task(name, model, trunk, Transforms(steps), meta, written)
        if hold is not None:
            hold(task)
    if task.method == 'E3VA':
        rebind(trunk, trunk.tuning.parts.ENTRY(trunk), given_or_run)
    return task


def says_config(source):
    """Whether a delta says which config it belongs to."""
    try:
        return delta_file.read(place(source)[0])[1].get('config') is not None
    except ValueError:                                                  # said when it is opened
        return False


def of_delta(source, pool, config, base, device):
    path, base, strength = place(source, base)
    tensors, meta = delta_file.read(path)
    if len(meta['trunks']) > 1:
        raise ValueError(f'{path} is of {len(meta["trunks"])} tuned backbones, and a server has one trunk')
    recorded = meta['trunks'][0]
    cfg, strange = settings(path, config, meta.get('config'), recorded)
    most = max(LEAST, sum(value.numel() for value in tensors.values()) + (pool.room or size_of(path, recorded, base)))
    what = f'the delta {path}'
    shared, model = True, None
    if pool.tensors and strength == 1:                                  # else it asks for the trunk's own norms, too
        with sharing(pool.stock):
            model = build(what, cfg, strange, most)
        shared = pool.holds(find_tuned(model)[1])
    if model is None or not shared:                                     # it needs what is not in memory yet
        shared, model = False, build(what, cfg, strange, most)
    trunk = find_tuned(model)[1]
    release(trunk)
    model.eval()
    records = records_of(path, meta, model)
    if shared:
        if fingerprint(frozen(trunk)) != recorded['sha256']:
            raise ValueError(f'{what} is of another trunk than the one in memory, which is that of {pool.of} (sha256 '
                             f'{recorded["sha256"][:12]}... was recorded). Serve it by a server of its own')
    else:
        find_base(trunk, path, recorded, base)
    if strength != 1:
        prefix = recorded['prefix']
        stock = {name: value.clone() for name, value in trunk.state_dict().items() if name in trunk.tuning.keys}
        tensors.update((prefix + name, value) for name, value in weakened(
            inside(tensors, prefix), trunk.tuning.method, stock, strength, path).items())
    with torch.no_grad():
        fill(model, path, tensors, meta, records, None)
    return settled(model, pool, what, device), cfg.scope, cfg.pipeline, meta['dataset_meta']


def of_checkpoint(source, pool, config, base, device):
    from mmengine.runner import CheckpointLoader
    found = CheckpointLoader.load_checkpoint(source, map_location='cpu')
    said = recorded_config(found)
    text = None
    if said.get('model'):
        text = repr(plain(dict(scope=said.get('default_scope'), pipeline=pipeline_of(said), model={
            **said['model'], 'data_preprocessor': said['model'].get('data_preprocessor') or said.get(
                'data_preprocessor'), 'train_cfg': None})))
    what, state = f'the checkpoint {source}', found.get('state_dict', found)
    cfg, strange = settings(source, config, text, dict(method=dict(type='Fixed')))
    model = build(what, cfg, strange, max(LEAST, sum(value.numel() for value in state.values())))
    model.eval()
    missing = model.load_state_dict(state, strict=False).missing_keys
    trunk = find_tuned(model)[1]
    demand(trunk, what)
    lacking = [name for name in missing if name in dict(model.named_parameters())]
    if lacking:
        raise ValueError(f'{what} lacks {len(lacking)} entries of the model of its config: {shorten(lacking, 3)}')
    meta = found.get('meta')
    return (settled(model, pool, what, device), cfg.scope, cfg.pipeline,
            (meta.get('dataset_meta') or {}) if isinstance(meta, dict) else {})


def settled(model, pool, what, device):
    """The model on its device, its trunk that of the pool; ValueError where that has other values."""
    model.to(device)
    trunk = find_tuned(model)[1]
    pool.check(trunk, what)
    pool.take(trunk, what)
    return model


def settings(path, config, text, recorded):
    """(ConfigDict(scope, model, pipeline), whether a file says so) of a task; ValueError where nobody says it."""
    if config is None and text is None:
        raise ValueError(f'{path} does not say which config it belongs to (it was saved without one): give config=')
    if config is None:
        try:
            return heard(text), True
        except ValueError as error:
            raise ValueError(f'the config in {path} cannot be used: {error}') from error
    cfg = config if isinstance(config, Config) else load(config)
    model = ConfigDict(cfg.model.to_dict())
    if not model.get('data_preprocessor'):
        model.data_preprocessor = cfg.get('data_preprocessor')
    backbone = model.get('backbone')
    if isinstance(backbone, dict) and backbone.get('type') not in foreign.TUNED:
        model.backbone = ConfigDict(backbone, type='e3va.Tuned', trunk=backbone.type, method=recorded['method'])
    model.train_cfg = None
    return ConfigDict(scope=cfg.get('default_scope', 'mmengine'), model=model, pipeline=pipeline_of(cfg)), False


def load(config):
    if not os.path.isfile(config):
        raise ValueError(f'there is no config file {config}')
    return Config.fromfile(str(config))


def build(what, cfg, strange, most):
    """The model of a config, with values at random; of a file's own config in no more than `most` values."""
    if cfg.scope in ('mmdet', 'mmseg', 'mmpretrain'):
        foreign.import_library(cfg.scope)
    with DefaultScope.overwrite_default_scope(cfg.scope):
        if not strange:
            return MODELS.build(cfg.model)
        try:
            with foreign.no_imports(), foreign.at_most(most):
                return MODELS.build(cfg.model)
        except Exception as error:                                      # whatever a constructor makes of odd options
            kind = '' if type(error) is ValueError else f'{type(error).__name__}: '
            raise ValueError(f'the model of {what} cannot be built: {kind}{error}') from error


def given_or_run(trunk, image, **options):
    """The trunk's forward: what was computed for this very image together with other tasks, else its own highway."""
    from ..highway.side import highway
    given = vars(trunk).get('given')
    return given[1] if given and given[0] is image else highway(trunk, image, **options)
