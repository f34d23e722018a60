"""A delta from a fully fine-tuned model: the change of each layer as a product of low rank, or by its largest entries.

    W_tuned - W  ~  U_r S_r V_r^T, the truncated singular value decomposition: of rank r the closest (Eckart, Young)

What is no matrix (biases, norms, tables, tokens, convolutions in groups) is taken over whole.
"""
import copy
import os
from collections.abc import Mapping

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..files import foreign
from ..files.checkpoint import read_checkpoint, recorded_config
from ..loading import shorten
from ..methods.base import build_method, integer
from ..surgery import near
from ..trunks import head_entries
from ..tuned import find_tuned, part_to_tune, scoped, tune, untuned
from .base import load_base
from .config import heard, told
from .extract import delta
from .merge import merge


@torch.no_grad()
def extract(base: nn.Module, tuned: nn.Module | Mapping | str | os.PathLike, rank: int = 8, k: int | None = None,
            config: dict | None = None) -> nn.Module:
    """A model tuned by LoRA, or sparsely, that comes close to a fully fine-tuned one; `save_delta` writes it.

    Args:
        base (nn.Module): the stock model or trunk with the weights from which the other was fine-tuned; it stays as
            it is.
        tuned (nn.Module, state dict or file): the fine-tuned one, of the same names.
        rank (int): of LoRA's factors.
        k (int): entries for each neuron, on the mean, in the place of factors: the largest changes of the whole trunk
            (GPS at the level of the net).
        config (dict): the trunk's config, which lets the saved delta rebuild the trunk by itself, see `tune`.

    Returns:
        nn.Module: a tuned copy of `base`. Its trunk's `extraction` is {layer: |W_tuned - W - delta| / |W_tuned - W|},
        '' for all of them together, which is also logged.

    Raises:
        ValueError: models of other names or shapes; nothing in the trunk has changed.
    """
    if any(hasattr(module, 'tuning') for module in base.modules()):
        raise ValueError('base has a method already: give the stock model')
    model = copy.deepcopy(base)
    given = state_of(tuned, model.state_dict())
    trunk, _, prefix = part_to_tune(model, build_method('LoRA'))
    own, head = dict(trunk.named_parameters()), head_entries(trunk)
    moved = [name for name, value in own.items() if name not in head
             and not torch.equal(value, given[prefix + name].to(value))]
    if not moved:
        raise ValueError('nothing in the trunk has changed: the other model has the same weights; only a head was '
                         "trained, for which dict(type='Fixed') is the method")
    layers = [name.removesuffix('.weight') for name in moved if is_matrix(trunk, name)]
    if k is None:
        integer('rank', rank)
        method = dict(type='LoRA', rank=rank, targets=layers) if layers else 'Fixed'
    else:
        method = dict(type='GPS', k=integer('k', k), level='net', criterion='magnitude', train=(),
                      targets=layers) if layers else 'Fixed'
    norms = moved_norms(trunk, given, prefix)
    rest = norms + [name for name in moved if name.removesuffix('.weight') not in layers
                    and name.rpartition('.')[0] not in norms]
    tune(trunk, method, config=config, also=rest)                       # by the trunk's own names, as a config has them
    trunk = find_tuned(model)[1]
    if k is not None and layers:
        trunk.tuning.method.choose(trunk, {
            name: (given[f'{prefix}{name}.weight'].to(trunk.get_submodule(name).weight)
                   - trunk.get_submodule(name).weight).abs() for name in layers})
    values = delta(model)
    for name in set(values) & set(given):
        values[name].copy_(given[name])
    trunk.extraction = {name: fill(trunk.get_submodule(name), given[f'{prefix}{name}.weight']) for name in layers}
    squares = [sum(each) for each in zip(*trunk.extraction.values())]
    trunk.extraction = {name: (lost / all_) ** 0.5 for name, (lost, all_) in trunk.extraction.items()}
    trunk.extraction[''] = (squares[0] / squares[1]) ** 0.5 if squares else 0.
    worst = max(trunk.extraction, key=trunk.extraction.get)
    print_log(f'{len(layers)} layers by {trunk.tuning.method.config["type"]}, {len(rest)} entries whole; of the change '
              f'of the weights {trunk.extraction[""]:.1%} is lost (norm), at most {trunk.extraction[worst]:.1%} '
              f'({worst or "all"})', logger='current')
    trunk.tuning.hooked = True
    return model


def moved_norms(trunk, given, prefix):
    """Names of the batch norms whose entries or statistics have changed: their buffers belong to the delta, too."""
    return [place for place, layer in trunk.named_modules() if isinstance(layer, _BatchNorm) and not all(
        torch.equal(value, given[f'{prefix}{place}.{name}'].to(value)) for name, value in layer.state_dict().items())]


def is_matrix(trunk, name):
    layer = trunk.get_submodule(name.rpartition('.')[0])
    return name.endswith('.weight') and (isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.groups == 1)) and min(len(layer.weight), layer.weight[0].numel()) > 1


def fill(layer, wanted):
    """Give a layer what comes closest to the weight `wanted`; (squares of what is lost, squares of the change)."""
    change = wanted.to(layer.weight).double() - layer.weight.double()
    if hasattr(layer, 'pairs'):
        pair = layer.pairs['0']
        u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
        r = min(len(pair.down), len(s))
        pair.down.zero_(), pair.up.zero_()
        pair.down[:r].copy_(s[:r, None].sqrt() * v[:r])
        pair.up[:, :r].copy_(u[:, :r] * s[:r].sqrt() / layer.scale)
    else:
        layer.values.copy_(wanted.to(layer.weight).flatten()[layer.index.long()])
    lost = wanted.to(layer.weight).double() - layer.whole().double()
    return float(lost.square().sum()), float(change.square().sum())


def state_of(tuned, own):
    """The state dict of the tuned model under the names of `own`; ValueError where they are not of one model."""
    if isinstance(tuned, nn.Module):
        tuned = tuned.state_dict()
    elif not isinstance(tuned, Mapping):
        tuned = read_checkpoint(tuned)
    tuned = tuned.get('state_dict', tuned)
    for prefix in ('', 'backbone.', 'module.', 'model.'):
        found = {name: tuned.get(prefix + name) for name in own}
        if not any(value is None for value in found.values()):
            break
    else:
        lacking = [name for name in own if name not in tuned]
        raise ValueError(f'the tuned model lacks {len(lacking)} entries of the base, such as {lacking[0]}; '
                         f'{near(lacking[0], list(tuned))}. Are they the same trunk, and the names those of the model '
                         'that is given as base?')
    shapes = [f'{name} {tuple(found[name].shape)} instead of {tuple(value.shape)}' for name, value in own.items()
              if found[name].shape != value.shape]
    if shapes:
        raise ValueError(f'the tuned model has other shapes than the base: {shorten(shapes, 3)}')
    return found


# ---- Of two files ----------------------------------------------------------------------------------------------------


def extract_files(base: str, tuned: str, config: ConfigDict | None = None, **options) -> tuple[nn.Module, dict]:
    """`extract` by checkpoints alone.

    Args:
        base (str): file or URL of the trunk's weights, of the trunk alone or of a whole model.
        tuned (str): file of the fine-tuned model, by a stock config or by the method Full.
        config (Config): of its run. Default: what the checkpoint says of it.
        **options: `rank` or `k` of `extract`.

    Returns:
        (model, dict of the options with which `save_delta` writes what a server and `e3va://` need).

    Raises:
        ValueError: a checkpoint that does not say its config, or is of another method than Full; base weights that are
            not of this trunk; and as `extract`.
    """
    found = read_checkpoint(tuned)
    text = told(config or recorded_config(found))
    if text is None:
        raise ValueError(f'{tuned} does not say by which config it was trained: give that (--config)')
    cfg = heard(text)
    cfg.model.backbone, trunk = stock_backbone(tuned, cfg.model.get('backbone'))
    foreign.import_library(cfg.scope)
    with DefaultScope.overwrite_default_scope(cfg.scope), foreign.no_imports():
        trunk.type = scoped(trunk.type)
        model = MODELS.build(cfg.model)
    _, backbone = find_tuned(model)
    try:
        load_base(backbone, str(base), 'backbone.')
    except Exception as error:                                          # whatever a library's loader raises
        raise ValueError(f'{base} does not give the trunk of {tuned} its weights: {error}') from error
    model = extract(merge(model), found.get('state_dict', found), config=trunk, **options)
    cfg.model.backbone.method = find_tuned(model)[1].tuning.method.config
    meta = found.get('meta')
    return model, dict(base=str(base), dataset_meta=meta.get('dataset_meta') if isinstance(meta, dict) else None,
                       config=dict(default_scope=cfg.scope, model=cfg.model, test_pipeline=cfg.pipeline))


def stock_backbone(tuned, backbone):
    """(config of the backbone under Fixed, of the stock trunk); ValueError where a method other than Full tuned it."""
    if not isinstance(backbone, dict) or 'type' not in backbone:
        raise ValueError(f'the model of {tuned} has no backbone, of which a delta could be: its config is of another '
                         'kind of model')
    trunk = ConfigDict(backbone)
    if trunk.type in foreign.TUNED:
        method = ConfigDict(type=trunk.method) if isinstance(trunk.method, str) else trunk.method
        if method.type.rpartition('.')[2] != 'Full':
            raise ValueError(f'{tuned} was trained by {method.type} and not as a whole: it has a delta, which '
                             'tools/model_converters/publish_delta.py writes')
        untuned(trunk)
    return ConfigDict(trunk, type='e3va.Tuned', trunk=trunk.type, method='Fixed'), trunk
