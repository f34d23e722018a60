"""What training changed: taken out of a model, described, and saved."""
import os
from typing import Any

import torch
from torch import nn

from ..files.checkout import commit
from ..layers.quantised import quantised_entries
from ..report import changed
from ..tuned import tuned_trunks, uncompiled
from . import file as delta_file
from .config import told
from .file import fingerprint

HALVES = dict(bf16=torch.bfloat16, fp16=torch.float16)


def delta(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes, as {name in the model's state_dict: tensor}: the methods' entries, neck and heads.

    Of a quantised matrix these are the floats behind the bits; the file of a delta has the bits alone.
    Left out are the frozen entries of the tuned trunks. Buffers outside them (a head's batch norm) are in.
    """
    model = uncompiled(model)
    left = frozen_names(model)
    return {name: value.detach() for name, value in model.state_dict().items() if name not in left}


def frozen_names(model):
    """Names of all that a delta of the model leaves out."""
    return {prefix + name for prefix, trunk in tuned_trunks(model)
            for name in set(trunk.state_dict()) - changed(trunk)}


def frozen(trunk):
    """{name: tensor} of the frozen parameters of a tuned trunk: what a delta needs to find again."""
    state, buffers = trunk.state_dict(), trunk.named_buffers(remove_duplicate=False)     # blocks may share a table
    left = changed(trunk) | {name for name, _ in buffers}
    return {name: state[name] for name in trunk.tuning.keys if name in state and name not in left}


def describe(model, base=None, dataset_meta=None, config=None, **more):
    """The metadata of a delta: methods, trunks, hashes of the frozen trunks, where the bases are, classes, config.

    For a single tuned trunk in the entries `method`, `trunk` and `base`, for several in a list `trunks`.

    Args:
        config (Config): of the run, see `config.told`.
        **more: what else is to be recorded, e.g. `averaged=True`.
    """
    trunks = [dict(describe_trunk(prefix, trunk), method=trunk.tuning.method.config, base=base_of(trunk, base))
              for prefix, trunk in tuned_trunks(model)]
    more = dict(more, dataset_meta=dataset_meta or {}, config=told(config), commit=commit())
    if len(trunks) > 1:
        return dict(trunks=trunks, **more)
    method, base = trunks[0].pop('method'), trunks[0].pop('base')
    return dict(method=method, trunk=trunks[0], base=base, **more)


def describe_trunk(prefix, trunk):
    """Where a trunk is in its model, and how it is built and recognised."""
    if trunk.tuning.described:
        return dict(trunk.tuning.described)
    tensors = frozen(trunk)
    return dict(type=type(trunk).__name__, prefix=prefix, config=trunk.tuning.config, entries=len(tensors),
                parameters=sum(value.numel() for value in tensors.values()), sha256=fingerprint(tensors))


def base_of(trunk, base):
    """The file or URL of a trunk's weights: the one that is given, else that of its config, else None."""
    init_cfg = (trunk.tuning.config or {}).get('init_cfg')
    if base is None and isinstance(init_cfg, dict):
        base = init_cfg.get('checkpoint')
    return None if base is None else str(base)


def save_delta(model: nn.Module, path: str | os.PathLike, base: str | None = None,
               dataset_meta: dict | None = None, dtype: str | None = None, config: Any = None) -> None:
    """Write the delta of a model as safetensors with its metadata.

    Args:
        model (nn.Module): a tuned model or trunk.
        path (str): the file to write; it is replaced as a whole, or not at all.
        base (str): file or URL of the trunk's weights, recorded for `load_delta`. Default: that of the trunk's
            `init_cfg`.
        dataset_meta (dict): e.g. `dict(classes=(...), palette=[...])`, for the inference APIs.
        dtype (str): 'bf16' or 'fp16' for half the bytes of what is trained in floats, statistics of batch norms
            excepted; a load gives the rounded values in the model's own type. Default: as they are.
        config (Config): the config of the model, or its file; with it a server or `e3va://` needs no other word on
            what the delta is for.
    """
    if isinstance(config, (str, os.PathLike)):
        from mmengine.config import Config
        config = Config.fromfile(str(config))
    model = uncompiled(model)
    delta_file.write(path, rounded(delta(model), dtype, quantised_entries(model)),
                     describe(model, base, dataset_meta, config), quantised_entries(model))


def rounded(tensors, dtype, quantised=()):
    """{name: tensor} with the floats in half precision, but for buffers of norms and what is written as codes.

    Raises ValueError for a type that is none, and for values that fp16 cannot hold.
    """
    if dtype is None:
        return tensors
    if dtype not in HALVES:
        raise ValueError(f'dtype={dtype!r}: a delta is written in {", ".join(map(repr, HALVES))}, or as it is (None)')
    kept = ('running_mean', 'running_var', *(f'{name}{end}' for name in quantised for end in ('', '_statistics')))
    halves = {name: value.to(HALVES[dtype]) for name, value in tensors.items()
              if value.is_floating_point() and value.element_size() > 2 and not name.endswith(kept)}
    if lost := [name for name, value in halves.items() if value.isinf().any() and tensors[name].isfinite().all()]:
        raise ValueError(f'dtype={dtype!r} cannot hold values of {lost[0]}: write it in bf16')
    return {**tensors, **halves}
