"""From the names on a command line to a config that a runner can be built from."""
import copy
import importlib.util
import os
import re
from pathlib import Path

import torch
import yaml
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS

from ..registry import type_name
from ..surgery import near

TUNED = ('e3va.Tuned', 'Tuned')
CONSTRUCTOR = 'e3va.TunedOptimWrapperConstructor'
HOOKS = dict(report='ReportHook', rng_state='RngStateHook', stop='StopHook')       # of every run
# what a method file may set: a task file sets the rest
METHOD_KEYS = ('method', 'default_hooks', 'optim_wrapper', 'custom_imports')


def load_config(config: str | os.PathLike) -> Config:
    """A config by path, or by name in an installed library: `mmdet::retinanet/retinanet_r50_fpn_1x_coco.py`.

    One that names its model by a class has that class's library as its default scope, if it gives none.

    Raises:
        ValueError: no such file (near names are shown), or a file that cannot be read as a config.
    """
    library, named, name = str(config).rpartition('::')
    folder = configs_folder(library) if named else Path(name).parent
    path = folder / name if named else Path(name)
    if not path.is_file():
        names = [str(file.relative_to(folder)) for file in (folder.rglob if named else folder.glob)('*.py')]
        where = f'{library} has no config {name}' if named else f'there is no config file {name}'
        raise ValueError(f'{where}; {near(name if named else path.name, names)}' if names else where)
    try:
        cfg = Config.fromfile(str(path))
        model = cfg.get('model')
        kind = model.get('type') if isinstance(model, dict) else None   # imports what a config of the newer style names
    except Exception as error:  # a config is a program of the user's: it may fail in any way
        raise ValueError(f'the config {config} cannot be read: {type(error).__name__}: {error}') from error
    scope = (type_name(kind) or '').partition('.')[0]
    if cfg.get('default_scope') is None and type_name(kind) != kind and scope in MODELS.children:
        cfg.default_scope = scope
    return cfg


def configs_folder(library):
    """The folder of the configs that come with an installed library, found without pip."""
    spec = importlib.util.find_spec(library) if library.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ValueError(f'there is no installed library {library!r}: use mmdet::, mmseg::, mmpretrain:: or e3va::')
    package = Path(spec.origin).parent
    checkout = package.parent  # in a checkout `.mim` may be missing, or left over from an older build
    folder = checkout / 'configs' if (checkout / 'setup.py').is_file() else package / '.mim' / 'configs'
    if not folder.is_dir():
        raise ValueError(f'{library} is installed without its configs: there is no folder {folder}')
    return folder


def load_method(name_or_file: str | os.PathLike) -> Config:
    """A method file by name (a file of `configs/methods/`) or by path.

    Raises:
        ValueError: no such method (near names are shown), or a file that is not a method file.
    """
    path = Path(name_or_file)
    if len(path.parts) == 1 and not (path.suffix == '.py' and path.is_file()):
        folder = configs_folder('e3va') / 'methods'
        path = folder / f'{path.name.removesuffix(".py")}.py'
        if not path.is_file():
            names = sorted(file.stem for file in folder.glob('*.py'))
            raise ValueError(f'unknown method {str(name_or_file)!r}; {near(name_or_file, names, len(names))}. '
                             'A file is given by its path')
    method = load_config(path)
    if not isinstance(method.get('method'), dict) or 'type' not in method.method:
        raise ValueError(f"{path} is not a method file: it sets no method = dict(type='NAME', ...)")
    if others := sorted(set(method.to_dict()) - set(METHOD_KEYS)):          # without the names that it imports
        raise ValueError(f'{path} is not a method file: it sets {", ".join(others)}, where only '
                         f'{", ".join(METHOD_KEYS)} belong')
    return method


def apply_method(cfg: Config, method_cfg: Config) -> Config:
    """A copy of a config with its backbone tuned by a method; all else stays, lists of `custom_hooks` too.

    Args:
        cfg (Config): any config with `model.backbone`.
        method_cfg (Config): what `load_method` gives.

    Raises:
        ValueError: a config that names a method already, or that has no `model.backbone`.
    """
    cfg = copy.deepcopy(cfg)
    model = cfg.get('model') or {}
    backbone = model.get('backbone')
    if not isinstance(backbone, dict) or 'type' not in backbone:
        found = ', '.join(key for key, _ in backbones(model, 'model')) or 'none anywhere'
        raise ValueError(f'e3va tunes model.backbone, which this config does not have (backbones: {found}). For a '
                         'model around another model, tune the inner one in a child config: '
                         "backbone=dict(type='e3va.Tuned', trunk=..., method=...)")
    if is_tuned(backbone):
        raise ValueError('a method given twice: the config tunes its backbone by '
                         f'{dict(backbone.get("method") or {})}, and --method asks for {dict(method_cfg.method)}; '
                         'drop one of them')
    backbone.trunk = type_name(backbone.type)
    backbone.type = 'e3va.Tuned'
    backbone.method = method_cfg.method
    amp = wrapper_type(cfg.get('optim_wrapper') or {})[1].startswith('Amp')
    cfg.merge_from_dict({key: method_cfg[key] for key in ('default_hooks', 'optim_wrapper') if key in method_cfg})
    imports = [name for each in (cfg, method_cfg) if each.get('custom_imports')
               for name in listed(each.custom_imports['imports'])]
    if imports:
        cfg.custom_imports = dict(imports=imports)
    return use_amp(cfg) if amp else cfg


def listed(names):
    """mmengine takes one name for a list of one, as mmsegmentation's Mask2Former has it."""
    return [names] if isinstance(names, str) else list(names)


def apply_settings(cfg, method_cfg):
    """Set in a config, in place, what its method's paper takes for its task, and say so in the log; returns it.

    Settings are a table beside the method file, or a base of it, NAME.yml: an entry for a suite, with settings of `all`
    its tasks, the dotted keys of its `columns`, and in `rows` the values for a task. Task files name themselves by
    `suite` and `task`.

    Args:
        cfg (Config): what `apply_method` gives.
        method_cfg (Config): what `load_method` gives.

    Raises:
        ValueError: a row that does not fit the columns.
    """
    file = table_of(method_cfg.filename)
    if 'suite' not in cfg or file is None:
        return cfg
    table = (yaml.safe_load(file.read_text()) or {}).get(cfg.suite, {})
    columns, row = table.get('columns', []), table.get('rows', {}).get(cfg.get('task'))
    if row is not None and len(row) != len(columns):
        raise ValueError(f'{file}, {cfg.suite} {cfg.task}: {len(row)} values for {len(columns)} columns, '
                         f'{", ".join(columns)}')
    chosen = {**table.get('all', {}), **dict(zip(columns, row or []))}
    if chosen:
        print_log(f'settings of {file.name} for {cfg.suite} {cfg.get("task", "")}: '
                  + ', '.join(f'{key}={value}' for key, value in chosen.items()))
        cfg.merge_from_dict(chosen)
    return cfg


def table_of(method_file):
    """The table beside a method file, or beside the first of its bases that has one; None."""
    file = Path(method_file).with_suffix('.yml')
    found = file if file.is_file() else None
    for base in () if found else Config._get_base_files(str(method_file)):
        found = found or table_of(Path(method_file).parent / base)
    return found


def use_amp(cfg):
    """Replace the optimizer wrapper by its mixed-precision twin, `e3va.XOptimWrapper` by `e3va.AmpXOptimWrapper`."""
    wrapper = cfg.get('optim_wrapper')
    if wrapper is None:
        raise ValueError('mixed precision (--amp) needs a config with an optim_wrapper')
    scope, name = wrapper_type(wrapper)
    if not name.startswith('Amp'):
        twin = f'{scope}Amp{name}'
        if OPTIM_WRAPPERS.get(twin) is None:
            raise ValueError(f'the optimizer wrapper {scope}{name} has no mixed-precision twin {twin}')
        wrapper.type = twin
    wrapper.setdefault('loss_scale', 'dynamic')
    return cfg


def wrapper_type(wrapper):
    """(scope with its dot, name) of an optimizer wrapper's type, e.g. ('e3va.', 'GPSOptimWrapper')."""
    scope, dot, name = type_name(wrapper.get('type') or 'OptimWrapper', OPTIM_WRAPPERS).rpartition('.')
    return scope + dot, name


def is_tuned(backbone):
    """Whether a backbone's config is one of e3va's."""
    return type_name(backbone.get('type')) in TUNED


def prepare(cfg: Config) -> Config:
    """Complete a config, in place, for this machine and for e3va; returns it.

    Every run gets the hooks that report, save the random state and end it well on SIGTERM (HOOKS); tuned backbones get
    e3va's constructor of the optimizer around the config's own; mmengine's CheckpointHook becomes e3va's, which loses
    no run; mmpretrain's loaders get the defaults that its own tools add; loaders without workers lose the options that
    torch refuses there; without a GPU a config in mixed precision, which mmengine refuses there, trains in single
    precision, and says so.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    scope, name = wrapper_type(wrapper)
    if name.startswith('Amp') and get_device() == 'cpu':
        print_log(f'no GPU here: {scope}{name} is replaced by its single-precision twin')
        wrapper.type = scope + name.removeprefix('Amp')
        for option in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(option, None)
    ours = {name: dict(type=f'e3va.{kind}') for name, kind in HOOKS.items()}
    tuned = [backbone for _, backbone in backbones(cfg.get('model'), 'model') if is_tuned(backbone)]
    for backbone in tuned:                                              # by names, so that what is saved names no class
        backbone.update(type='e3va.Tuned', trunk=type_name(backbone.get('trunk')))
    if tuned and wrapper:
        construct(wrapper)
    cfg.default_hooks = {**ours, **(cfg.get('default_hooks') or {})}
    keep_checkpoints_whole(cfg)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(key)
        if not isinstance(loader, dict):
            continue
        if cfg.get('default_scope') == 'mmpretrain':
            loader.setdefault('pin_memory', torch.cuda.is_available())
            loader.setdefault('persistent_workers', True)
            loader.setdefault('collate_fn', dict(type='default_collate'))
        if not loader.get('num_workers'):
            loader.persistent_workers = False
            loader.pop('prefetch_factor', None)
    return cfg


def construct(wrapper):
    """Let e3va construct the optimizer, by way of the constructor that the config names (layer-wise rates), if any."""
    stock = type_name(wrapper.get('constructor'), OPTIM_WRAPPER_CONSTRUCTORS)
    if stock not in (None, CONSTRUCTOR, 'DefaultOptimWrapperConstructor'):
        wrapper.paramwise_cfg = {**(wrapper.get('paramwise_cfg') or {}), 'constructor': stock}
    wrapper.constructor = CONSTRUCTOR


def keep_checkpoints_whole(cfg):
    """Put e3va's CheckpointHook, which takes the same options, in the place of mmengine's; another class stays."""
    named = cfg.get('default_hooks') or {}
    if 'checkpoint' not in named:                                       # mmengine's default
        cfg.default_hooks = {**named, 'checkpoint': dict(type='CheckpointHook', interval=1)}
    for hook in [*cfg.default_hooks.values(), *(cfg.get('custom_hooks') or ())]:
        if isinstance(hook, dict) and is_mmengine_s(hook.get('type')):
            hook['type'] = 'e3va.CheckpointHook'
    kind = (cfg.default_hooks.checkpoint or {}).get('type')
    if kind not in (None, 'e3va.CheckpointHook'):
        print_log(f'checkpoints are written by {kind}: whether a kill or a full disk loses them is up to that')


def is_mmengine_s(kind):
    """Whether a type, or its name, is mmengine's own CheckpointHook."""
    return kind is CheckpointHook or bool(re.fullmatch(r'(mmengine\.(\w+\.)*)?CheckpointHook', str(kind)))


def backbones(cfg, key):
    """(dotted name, dict) of each backbone in a model's config, inner models included."""
    children = cfg.items() if isinstance(cfg, dict) else enumerate(cfg) if isinstance(cfg, (list, tuple)) else ()
    for name, value in children:
        if name == 'backbone' and isinstance(value, dict):
            yield f'{key}.{name}', value
        else:
            yield from backbones(value, f'{key}.{name}')


def nodes(cfg):
    """Every dict in a config."""
    if isinstance(cfg, dict):
        yield cfg
    for value in cfg.values() if isinstance(cfg, dict) else cfg if isinstance(cfg, (list, tuple)) else ():
        yield from nodes(value)
