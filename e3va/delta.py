"""What training changed: extract it, save it, load it onto the right trunk, merge it."""
import copy
import logging

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from . import delta_file, loading
from .delta_file import fingerprint
from .layers.quantised import quantised_entries
from .methods import build_method
from .methods.routing import TABLE, routing_of
from .surgery import replace, unbind
from .trunks import vit_sam
from .trunks.walk import restore
from .tuned import find_tuned


def is_changed(trunk, name):
    """Whether the trunk's entry `name` belongs to a delta: it is the method's, or trains, or its module trains."""
    tuning = trunk.tuning
    if name not in tuning.keys:
        return True
    parent, _, leaf = name.rpartition('.')
    module = trunk.get_submodule(parent)
    if module._parameters.get(leaf) is not None:
        return module._parameters[leaf].requires_grad
    if leaf == 'relative_position_index':                               # of Swin: a constant
        return False
    return any(parameter.requires_grad for parameter in module._parameters.values() if parameter is not None)


def delta(model):
    """What training changes, as {name in the model's state_dict: tensor}: the method's entries, neck and heads.

    Of a quantised matrix these are the floats behind the bits; the file of a delta has the bits alone.
    Left out are the frozen entries of the trunk. Buffers outside the trunk (a head's batch norm) are in.
    """
    prefix, trunk = find_tuned(model)
    return {name: value.detach() for name, value in model.state_dict().items()
            if not name.startswith(prefix) or is_changed(trunk, name[len(prefix):])}


def frozen(trunk):
    """{name: tensor} of the frozen parameters of a tuned trunk: what a delta needs to find again."""
    state = trunk.state_dict()
    buffers = dict(trunk.named_buffers())
    return {name: state[name] for name in trunk.tuning.keys
            if name not in buffers and not is_changed(trunk, name)}


def describe(model, base=None, dataset_meta=None):
    """The metadata of a delta: method, trunk, hash of the frozen trunk, where the base is, classes."""
    prefix, trunk = find_tuned(model)
    config, tensors = trunk.tuning.config, frozen(trunk)
    if base is None and config and isinstance(config.get('init_cfg'), dict):
        base = config['init_cfg'].get('checkpoint')
    return dict(
        method=trunk.tuning.method.config,
        trunk=dict(type=type(trunk).__name__, prefix=prefix, config=config, entries=len(tensors),
                   parameters=sum(value.numel() for value in tensors.values()), sha256=fingerprint(tensors)),
        base=None if base is None else str(base),
        dataset_meta=dataset_meta or {})


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


def load_delta(model, path, base=None):
    """Load a saved delta onto a tuned model, and onto the very trunk that it was trained on.

    Args:
        model (nn.Module): built from the same config (or tuned by the same method) as the model that was saved.
        path (str): the file.
        base (str): file or URL of the trunk's weights. Default: the weights that the trunk has, if they are the right
            ones, else the base that the delta recorded.

    Returns:
        nn.Module: `model` itself.

    Raises:
        ValueError: a damaged file; missing, extra or misshapen entries; a base that is not the recorded one.
    """
    tensors, meta = delta_file.read(path)
    prefix, trunk = find_tuned(model)
    given = {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}
    keep = [value for name, value in model.state_dict(keep_vars=True).items()
            if not name.startswith(prefix) or name[len(prefix):] in trunk.tuning.keys]
    trial = copy.deepcopy(model, {id(value): value for value in keep})  # so that a load that is refused changes nothing
    _, tried = find_tuned(trial)
    tried.tuning.method.expect(tried, given)
    own = delta(trial)
    wrong = [f'missing {loading.shorten(sorted(set(own) - set(tensors)))}'] if set(own) - set(tensors) else []
    if set(tensors) - set(own):
        wrong.append(f'not in the model: {loading.shorten(sorted(set(tensors) - set(own)))}')
    shapes = [f'{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}'
              for name in own if name in tensors and tensors[name].shape != own[name].shape]
    if {name: bits for name, (bits, *_) in meta.get('packed', {}).items()} != quantised_entries(trial):
        wrong.append('other matrices are quantised, or in other bits')
    if shapes:
        wrong.append(f'other shapes: {loading.shorten(shapes, 3)}')
    if wrong:
        raise ValueError(f'the delta {path} does not fit this model ({"; ".join(wrong)}). It was trained with '
                         f'{meta["method"]} on {meta["trunk"]["type"]}: build the model from that config')
    for name, (theirs, ours) in differences(meta['method'], trunk.tuning.method).items():
        print_log(f'the delta {path} was trained with {name}={theirs!r}, and the model has {name}={ours!r}: where that '
                  'is part of what the method computes, outputs are others', logger='current', level=logging.WARNING)
    find_base(trunk, path, meta, base)
    trunk.tuning.method.expect(trunk, given)
    with torch.no_grad():
        for name, value in delta(model).items():
            value.copy_(tensors[name])
    trunk.tuning.fresh.clear()
    trunk.tuning.method.loaded(trunk, frozenset())
    return model


def differences(config, method):
    """{option: (value, value)} of the options in which a recorded method differs from this one."""
    recorded = vars(build_method(config))
    return {name: (value, vars(method)[name]) for name, value in recorded.items()
            if name != 'config' and name in vars(method) and value != vars(method)[name]}


def find_base(trunk, path, meta, base=None):
    """See that the frozen trunk holds the weights that a delta was trained on; ValueError lists what was tried."""
    tried = []
    if base is None:
        if fingerprint(frozen(trunk)) == meta['trunk']['sha256']:
            return
        tried.append('the weights that the trunk has: they are others')
    for source, role in ((base, 'argument'),) if base is not None else ((meta['base'], 'recorded'),):
        if source is None:
            tried.append('the delta records no base')
            continue
        try:
            load_base(trunk, source)
        except Exception as error:                                      # whatever a library's loader raises
            tried.append(f'{source} ({role}): {type(error).__name__}: {error}')
            continue
        if fingerprint(frozen(trunk)) == meta['trunk']['sha256']:
            return
        tried.append(f'{source} ({role}): its values are others')
    raise ValueError(f'the trunk that {path} was trained on was not found. Tried: {"; ".join(tried)}. Give its file: '
                     'load_delta(model, path, base=FILE), or e3va://DELTA?base=FILE')


def load_base(trunk, source):
    """Load weights into a trunk from a file or URL: by the trunk's own names, else the way its library converts."""
    from .trunks.timm_trunk import load_timm
    if type(trunk).__module__.startswith('timm.'):
        load_timm(trunk, source)
        return
    found = CheckpointLoader.load_checkpoint(source, map_location='cpu')
    found = vit_sam.own_names(found.get('state_dict', found))
    for prefix in ('', 'backbone.', 'module.backbone.'):
        if all(prefix + name in found for name in frozen(trunk)):
            inside = {name[len(prefix):]: value for name, value in found.items() if name.startswith(prefix)}
            trunk.load_state_dict({name: inside[name] for name in trunk.tuning.keys if name in inside}, strict=False)
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
    prefix, trunk = find_tuned(model)
    method = trunk.tuning.method
    if not method.mergeable:
        raise ValueError(f'{type(method).__name__} cannot be merged: it adds layers that the stock trunk has not. Keep '
                         'the tuned model, or its delta (e3va.save_delta)')
    model = copy.deepcopy(model)
    prefix, trunk = find_tuned(model)
    for name, layer in [(name, layer) for name, layer in model.named_modules()
                        if callable(getattr(layer, 'merged', None))]:
        replace(model, name, layer.merged())
    if routing_of(trunk):
        replace(trunk, TABLE, None)
    unbind(trunk, 'train')
    if trunk.tuning.parts:
        restore(trunk, trunk.tuning.parts)
    loading.unwatch(trunk)
    keys, head = set(trunk.tuning.keys), tuple(f'{name.rpartition(".")[0]}.' for name in trunk.tuning.head)
    del trunk.tuning
    assert all(name.startswith(head) for name in keys ^ set(trunk.state_dict()))    # a quantised one had no bias
    return model.requires_grad_(True)
