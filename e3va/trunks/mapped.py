"""A trunk whose weights stay in their file, where all processes of a machine read the same pages of memory."""
import contextlib
import os
import re
from functools import partialmethod

import torch
from mmengine.registry import MODELS as ROOT
from torch import nn

from ..surgery import rebind

_wanted = False
_given = None                                                           # {name: tensor} of a trunk that is in memory


@contextlib.contextmanager
def mapping(wanted=True):
    """Have the trunks that are built from configs in here take their weights so (`Tuned` asks)."""
    global _wanted
    before, _wanted = _wanted, wanted
    try:
        yield
    finally:
        _wanted = before


def wanted():
    return _wanted


@contextlib.contextmanager
def sharing(tensors):
    """Have the trunks that are built from configs in here take these tensors themselves, {name: tensor}, as parameters.

    No memory is taken for them. Parameters of other names or shapes are zeros.
    """
    global _given
    before, _given = _given, tensors
    try:
        yield
    finally:
        _given = before


def build(config):
    """A stock trunk from its config, where its weights come from in this context."""
    if _given is None:
        return build_mapped(config) if _wanted else ROOT.build(dict(config))
    trunk = empty(config)
    for module_name, module in trunk.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                given = _given.get(f'{module_name}.{name}'.lstrip('.'))
                fits = given is not None and given.shape == parameter.shape and given.dtype == parameter.dtype
                value = given.detach() if fits else torch.zeros(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(value, parameter.requires_grad)
    return trunk


def empty(config):
    """A stock trunk whose parameters have shapes alone."""
    with replaced(nn.Module, 'register_parameter', partialmethod(on_meta, nn.Module.register_parameter)):
        return ROOT.build(dict(config))


def build_mapped(config):
    """A stock trunk from its config: built without memory, its weights those in the file of its `init_cfg`.

    They are pages of the file, copied where somebody writes. `init_weights` has been called, and does nothing more.

    Raises:
        ValueError: no `.safetensors` file at hand, or one that leaves parameters out.
    """
    from mmengine.model import base_module, weight_init  # slow to import, and not for timm users
    init = config.get('init_cfg')
    file = init.get('checkpoint') if isinstance(init, dict) else None
    if not str(file).endswith('.safetensors') or not os.path.isfile(file):
        raise ValueError(f'weights that stay in their file need a .safetensors file at hand in the init_cfg of the '
                         f'backbone, not {file}: save it with safetensors.torch.save_file')
    trunk = empty(config)
    handles = [module.register_load_state_dict_pre_hook(assign) for module in trunk.modules()]
    for module in trunk.modules():
        module._params_init_info = None                                 # mmengine's notes of means: it makes none here
    with replaced(base_module, 'update_init_info', nothing), replaced(weight_init, 'update_init_info', nothing):
        trunk.init_weights()
    for module, handle in zip(trunk.modules(), handles):
        del module._params_init_info
        handle.remove()
    for name, module in trunk.named_modules():
        if re.fullmatch(r'norm\d+', name) and any(one.is_meta for one in module.parameters(recurse=False)):
            module.to_empty(device='cpu').reset_parameters()            # of the neck's maps: in no published file
    if left := [name for name, parameter in trunk.named_parameters() if parameter.is_meta]:
        raise ValueError(f'{file} leaves {len(left)} parameters of the trunk {type(trunk).__name__} without values, '
                         f'such as {left[0]}. Give the checkpoint of this size of trunk')
    rebind(trunk, 'init_weights', nothing)
    return trunk


@contextlib.contextmanager
def replaced(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def on_meta(module, register, name, parameter):
    """In the place of a module's `register_parameter`: the parameter has a shape alone. Buffers are what they are."""
    if parameter is not None and not parameter.is_meta:
        parameter = nn.Parameter(parameter.to('meta'), parameter.requires_grad)
    register(module, name, parameter)


def assign(module, state, prefix, metadata, *_):
    """A load into a module takes the tensors themselves, in the module's own type."""
    metadata['assign_to_params_buffers'] = True
    for name, parameter in module._parameters.items():
        value = state.get(prefix + name)
        if parameter is not None and value is not None and value.dtype != parameter.dtype:
            state[prefix + name] = value.to(parameter.dtype)


def nothing(*args, **options):
    """In the place of `init_weights`, which has been called, and of mmengine's notes on it."""
