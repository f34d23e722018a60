"""What training changed: extract it, save it, load it onto the right trunk, merge it."""
import copy
import logging
import os
import re

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log

from .. import loading
from ..files import checkpoint as trusted
from ..layers.quantised import quantised_entries
from ..loading import shorten
from ..methods import build_method
from ..methods.routing import TABLE, routing_of
from ..surgery import replace, unbind, unhook
from ..trunks import head_entries, vit_sam
from ..trunks.walk import ask_for_gradient, restore
from ..tuned import demand_hook, tuned_trunks
from . import file as delta_file
from .file import fingerprint

FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64


def changed(trunk):
    """Names of a tuned trunk's entries that belong to a delta: they are the method's, or train, or their module trains.

    A classifier inside the trunk belongs to it whole, as the model has it now.
    """
    keys, head = set(trunk.tuning.keys), head_entries(trunk)
    return {name for name in trunk.state_dict() if name not in keys or name in head or trains(trunk, name)}


def trains(trunk, name):
    parent, _, leaf = name.rpartition('.')
    module = trunk.get_submodule(parent)
    if module._parameters.get(leaf) is not None:
        return module._parameters[leaf].requires_grad
    if leaf == 'relative_position_index':                               # of Swin: a constant
        return False
    return any(parameter.requires_grad for parameter in module._parameters.values() if parameter is not None)


def delta(model):
    """What training changes, as {name in the model's state_dict: tensor}: the methods' entries, neck and heads.

    Of a quantised matrix these are the floats behind the bits; the file of a delta has the bits alone.
    Left out are the frozen entries of the tuned trunks. Buffers outside them (a head's batch norm) are in.
    """
    left = frozen_names(model)
    return {name: value.detach() for name, value in model.state_dict().items() if name not in left}


def frozen_names(model):
    """Names of all that a delta of the model leaves out."""
    return {prefix + name for prefix, trunk in tuned_trunks(model)
            for name in set(trunk.state_dict()) - changed(trunk)}


def frozen(trunk):
    """{name: tensor} of the frozen parameters of a tuned trunk: what a delta needs to find again."""
    state, left = trunk.state_dict(), changed(trunk) | {name for name, _ in trunk.named_buffers()}
    return {name: state[name] for name in trunk.tuning.keys if name in state and name not in left}


def describe(model, base=None, dataset_meta=None):
    """The metadata of a delta: methods, trunks, hashes of the frozen trunks, where the bases are, classes.

    For a single tuned trunk in the entries `method`, `trunk` and `base`, for several in a list `trunks`.
    """
    trunks = [dict(describe_trunk(prefix, trunk), method=trunk.tuning.method.config, base=base_of(trunk, base))
              for prefix, trunk in tuned_trunks(model)]
    if len(trunks) > 1:
        return dict(trunks=trunks, dataset_meta=dataset_meta or {})
    method, base = trunks[0].pop('method'), trunks[0].pop('base')
    return dict(method=method, trunk=trunks[0], base=base, dataset_meta=dataset_meta or {})


def describe_trunk(prefix, trunk):
    """Where a trunk is in its model, and how it is built and recognised."""
    tensors = frozen(trunk)
    return dict(type=type(trunk).__name__, prefix=prefix, config=trunk.tuning.config, entries=len(tensors),
                parameters=sum(value.numel() for value in tensors.values()), sha256=fingerprint(tensors))


def base_of(trunk, base):
    """The file or URL of a trunk's weights: the one that is given, else that of its config, else None."""
    init_cfg = (trunk.tuning.config or {}).get('init_cfg')
    if base is None and isinstance(init_cfg, dict):
        base = init_cfg.get('checkpoint')
    return None if base is None else str(base)


def save_delta(model, path, base=None, dataset_meta=None):
    """Write the delta of a model as safetensors with its metadata.

    Args:
        model (nn.Module): a tuned model or trunk.
        path (str): the file to write; it is replaced as a whole, or not at all.
        base (str): file or URL of the trunk's weights, recorded for `load_delta`. Default: that of the trunk's
            `init_cfg`.
        dataset_meta (dict): e.g. `dict(classes=(...), palette=[...])`, for the inference APIs.
    """
    delta_file.write(path, delta(model), describe(model, base, dataset_meta), quantised_entries(model))


@torch.no_grad()
def load_delta(model, path, base=None):
    """Load a saved delta onto a tuned model, and onto the very trunk that it was trained on.

    Args:
        model (nn.Module): built from the same config (or tuned by the same method) as the model that was saved.
        path (str): the file.
        base (str): file or URL of the trunk's weights. Default: the weights that the trunk has, if they are the right
            ones, else the file that the delta recorded. A URL that it recorded is not fetched: give it as `base`.

    Returns:
        nn.Module: `model` itself.

    Raises:
        ValueError: a damaged file; missing, extra or misshapen entries, or values that no training can have left; a
            base that is not the recorded one. The model is then as it was.
    """
    tensors, meta = delta_file.read(path)
    trunks, records = tuned_trunks(model), records_of(path, meta, model)
    right = base is None and all(fingerprint(frozen(trunk)) == records[prefix]['sha256'] for prefix, trunk in trunks)
    # All of it happens to a copy first, so that a load that is refused changes nothing. Frozen values are shared with
    # it, unless others are to be loaded.
    left = frozen_names(model) if right else ()
    state = model.state_dict(keep_vars=True)
    trial = copy.deepcopy(model, {id(state[name]): state[name] for name in left})
    fill(trial, path, tensors, meta, records, None if right else [base])
    for (prefix, trunk), (_, tried) in zip(trunks, tuned_trunks(trial)):
        if right:
            trunk.tuning.method.expect(trunk, inside(tensors, prefix))
        else:
            trunk.load_state_dict(tried.state_dict())
    for name, value in delta(model).items():
        value.copy_(tensors[name])
    for _, trunk in trunks:
        settle(trunk)
    return model


def records_of(path, meta, model):
    """{prefix of a tuned trunk of the model: what a delta records of it}; ValueError where they are not the same."""
    prefixes, records = [prefix for prefix, _ in tuned_trunks(model)], meta['trunks']
    if len(prefixes) == len(records) == 1:                              # it may have another name in this model
        return {prefixes[0]: records[0]}
    found = {record['prefix']: record for record in records}
    if set(found) != set(prefixes):
        raise ValueError(f'the delta {path} is of tuned trunks at {shorten(map(repr, found))}, and this model has them '
                         f'at {shorten(map(repr, prefixes))}: build the model that was saved')
    return found


def fill(model, path, tensors, meta, records, bases):
    """Load a delta into a model that may be left half filled: ValueError as `load_delta`.

    Args:
        bases (list): one file or URL of the trunk's weights, or None for the recorded one; None: it has them.
    """
    trunks = tuned_trunks(model)
    trained = ' and '.join(f'{record["method"]} on {record["type"]}' for record in records.values())
    for prefix, trunk in trunks:
        trunk.tuning.method.expect(trunk, inside(tensors, prefix))
    if wrong := misfits(tensors, delta(model), quantised_entries(model), meta['packed']):
        raise ValueError(f'the delta {path} does not fit this model ({"; ".join(wrong)}). It was trained with '
                         f'{trained}: build the model from that config')
    for prefix, trunk in trunks:
        for name, (theirs, ours) in differences(records[prefix]['method'], trunk.tuning.method).items():
            print_log(f'the delta {path} was trained with {name}={theirs!r}, and the model has {name}={ours!r}: where '
                      'that is part of what the method computes, outputs are others', logger='current',
                      level=logging.WARNING)
        if bases:
            find_base(trunk, path, records[prefix], *bases)
    for name, value in delta(model).items():
        value.copy_(tensors[name])
    for _, trunk in trunks:
        settle(trunk)


def inside(tensors, prefix):
    """The entries of a trunk, under its own names."""
    return {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}


def settle(trunk):
    """A trunk has all of its values: none is as it was drawn, and what derives from them is made again."""
    trunk.tuning.fresh.clear()
    trunk.tuning.method.loaded(trunk, frozenset())
    loading.renew(trunk)


def misfits(tensors, own, quantised, packed):
    """Why tensors cannot be what a model's entries were after training, as parts of an error message."""
    wrong = [f'missing {shorten(sorted(set(own) - set(tensors)))}'] if set(own) - set(tensors) else []
    if set(tensors) - set(own):
        wrong.append(f'not in the model: {shorten(sorted(set(tensors) - set(own)))}')
    both = [(name, tensors[name], value) for name, value in own.items() if name in tensors]
    if {name: bits for name, (bits, *_) in packed.items()} != quantised:
        wrong.append('other matrices are quantised, or in other bits')
    shapes = [f'{name} {tuple(given.shape)} instead of {tuple(value.shape)}' for name, given, value in both
              if given.shape != value.shape]
    if shapes:
        wrong.append(f'other shapes: {shorten(shapes, 3)}')
    return wrong + odd_values(both)


def odd_values(both):
    """Of (name, given, own tensor) those whose kind or values are odd, as parts of an error message."""
    kinds = [f'{name} {given.dtype} instead of {own.dtype}' for name, given, own in both
             if given.dtype != own.dtype and not (own.is_floating_point() and given.dtype in FLOATS)]
    odd = [name for name, given, own in both if given.dtype in FLOATS and not given.isfinite().all()
           and own.isfinite().all()]
    return ([f'other kinds of numbers: {shorten(kinds, 3)}'] if kinds else []) + (
        [f'NaN or infinite: {shorten(odd, 3)}'] if odd else [])


def differences(config, method):
    """{option: (value, value)} of the options in which a recorded method differs from this one."""
    recorded = vars(recorded_method(config))
    return {name: (value, vars(method)[name]) for name, value in recorded.items()
            if name != 'config' and name in vars(method) and value != vars(method)[name]}


def recorded_method(config):
    """The method that a file records; ValueError where none is registered under its name, or its options are odd."""
    try:
        return build_method(config)
    except TypeError as error:                                          # a value of another kind than an option takes
        raise ValueError(f'the recorded method {str(config):.200} cannot be built: {error}') from error


def find_base(trunk, path, record, base=None):
    """See that the frozen trunk holds the weights that a delta was trained on; ValueError lists what was tried.

    Args:
        record (dict): what the delta records of this trunk, see `describe`.
        base (str): file or URL; None: the recorded file. That is a stranger's word: it is read as data and not fetched.
    """
    tried = []
    if base is None:
        if fingerprint(frozen(trunk)) == record['sha256']:
            return
        tried.append('the weights that the trunk has: they are others')
        if record['base'] is None:
            tried.append('the delta records no base')
    for source, role in ((base, 'argument'), (record['base'] if base is None else None, 'recorded')):
        if source is None:
            continue
        try:
            if role == 'recorded':
                with trusted.trusting(False):
                    load_base(trunk, at_hand(source), record['prefix'])
            else:
                load_base(trunk, source, record['prefix'])
        except Exception as error:                                      # whatever a library's loader raises
            kind = '' if type(error) is ValueError else f'{type(error).__name__}: '
            tried.append(f'{source} ({role}): {kind}{error}')
            continue
        if fingerprint(frozen(trunk)) == record['sha256']:
            return
        tried.append(f'{source} ({role}): its values are others')
    raise ValueError(f'the trunk that {path} was trained on was not found. Tried: {"; ".join(tried)}. Give its file: '
                     'load_delta(model, path, base=FILE), or e3va://DELTA?base=FILE')


def at_hand(source):
    """The local file of a recorded base, or what an earlier download has left of its URL; ValueError if there is none.
    """
    file = trusted.cached(source) if re.match('https?://', source) else source
    local = re.fullmatch(r'(?:timm://[^?]+\?file=|e3va://)([^?]+)', source)    # schemes that read a file
    if os.path.isfile(local[1] if local else file):
        return file
    raise ValueError('it is not at hand, and nothing that a delta names is fetched unasked: give it as the base')


def load_base(trunk, source, prefix=''):
    """Load weights into a trunk from a file or URL: by the trunk's own names, else the way its library converts.

    Args:
        prefix (str): of the trunk's names in its model, which may be a whole model's file.
    """
    from ..trunks.timm_trunk import load_timm
    if type(trunk).__module__.startswith('timm.'):
        load_timm(trunk, source)
        return
    from mmengine.runner import CheckpointLoader  # slow to import, and not for timm users
    found = CheckpointLoader.load_checkpoint(source, map_location='cpu')
    found = vit_sam.own_names(found.get('state_dict', found))
    for start in ('', prefix, 'backbone.', 'module.backbone.'):
        if all(start + name in found for name in frozen(trunk)):
            given = inside(found, start)
            trunk.load_state_dict({name: given[name] for name in trunk.tuning.keys if name in given}, strict=False)
            return
    old = trunk.init_cfg
    trunk.init_cfg = ConfigDict(old if isinstance(old, dict) else {}, type='Pretrained', checkpoint=source)
    trunk._is_init = False
    try:
        trunk.init_weights()
    finally:
        trunk.init_cfg = old


@torch.no_grad()
def merge(model):
    """A copy of a tuned model (or trunk) with the delta folded into plain layers: the stock classes and names.

    Raises ValueError where the method adds something that no stock layer can do (E3VA's highway).
    """
    for _, trunk in tuned_trunks(model):
        if not trunk.tuning.method.mergeable:
            raise ValueError(f'{type(trunk.tuning.method).__name__} cannot be merged: it adds layers that the stock '
                             'trunk has not. Keep the tuned model, or its delta (e3va.save_delta)')
    model = copy.deepcopy(model)
    for name, layer in [(name, layer) for name, layer in model.named_modules()
                        if callable(getattr(layer, 'merged', None))]:
        replace(model, name, layer.merged())
    for _, trunk in tuned_trunks(model):
        if routing_of(trunk):
            replace(trunk, TABLE, None)
        unbind(trunk, 'train')
        if trunk.tuning.parts:
            restore(trunk, trunk.tuning.parts)
        loading.unwatch(trunk)
        unhook(trunk, ask_for_gradient, demand_hook)
        loading.renew(trunk)
        keys, head = set(trunk.tuning.keys), head_entries(trunk)
        places = tuple(f'{name.rpartition(".")[0]}.' for name in head)
        del trunk.tuning
        assert all(name.startswith(places) for name in keys ^ set(trunk.state_dict()))  # a quantised one had no bias
    return model.requires_grad_(True)
