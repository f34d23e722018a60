"""LoRA as adapter files of HF PEFT, and back; the package itself is not needed.

PEFT has one pair of factors on a linear layer, W + s B A. On a fused q, k, v layer e3va's LoRA has a pair for each
adapted slice of the outputs. Side by side these are one pair of a larger rank, exactly; for q and v of rank r each:

    A = [A_q; A_v], (2 r, in)        B = [[B_q, 0], [0, 0], [0, B_v]], (3 width, 2 r)        s as it is

On a convolution both are kernels, A (r, in, h, w) and B (out, r / groups, 1, 1). PEFT's A has no groups: ours is its
blocks, with zeros elsewhere.

The other way, a pair that PEFT has trained on a fused layer is read as slices with equal A's.
"""
import json
import math
import os
import re
from collections import Counter

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from ..files import foreign
from ..files.whole import write
from ..layers import Emptied, served
from ..loading import shorten
from ..methods.base import number
from ..methods.lora import LoRAAttention, LoRAConv2d, LoRALinear
from ..methods.routing import TABLE
from ..tuned import find_tuned
from .extract import delta
from .load import odd_values

TENSORS, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
ROOT = 'base_model.model.'                                              # PEFT's prefix of the model's own names
# Inits that leave the trunk's weights as they are; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA train on changed ones.
PLAIN_INITS = (True, False, 'gaussian', 'eva', 'orthogonal')
# Options of PEFT's LoRA that make another function of the factors, or add entries.
FOREIGN = ('use_dora', 'lora_bias', 'use_qalora', 'use_bdlora', 'kasa_config', 'monteclora_config', 'arrow_config',
           'layer_replication', 'target_parameters', 'trainable_token_indices', 'alora_invocation_tokens')


def export_peft(model: nn.Module, folder: str | os.PathLike) -> None:
    """Write a model tuned by LoRA as `adapter_model.safetensors` and `adapter_config.json`.

    `peft.PeftModel.from_pretrained(stock_model, folder)` then gives the same outputs. What else trains (a classifier,
    output norms, neck and heads) becomes PEFT's `modules_to_save`.

    Args:
        model (nn.Module): a model or trunk tuned by LoRA.
        folder (str): is made where it is not there.

    Raises:
        ValueError: another method; a trained parameter of the model itself, which belongs to no module.
    """
    layers = lora_layers(model)
    tensors, ranks = {}, {}
    for name, layer in layers.items():
        check_geometry(name, layer)
        ranks[name], (tensors[f'{ROOT}{name}.lora_A.weight'], tensors[f'{ROOT}{name}.lora_B.weight']) = joined(layer)
    modules = sorted({name.rpartition('.')[0] for name in others(model, layers)})
    if '' in modules:
        raise ValueError('PEFT saves modules, and a parameter of the model itself trains: '
                         f'{shorten(name for name in others(model, layers) if "." not in name)}')
    # PEFT takes every module whose name ends like one of these, and wants all of their entries.
    saved = tuple(f'{name}.' for name, _ in model.named_modules() if modules and name.endswith(tuple(modules)))
    tensors.update({f'{ROOT}{name}': value for name, value in model.state_dict().items() if name.startswith(saved)})
    scale = next(iter(layers.values())).scale
    rank = Counter(ranks.values()).most_common(1)[0][0]
    odd = {name: own for name, own in ranks.items() if own != rank}
    config = dict(
        peft_type='LORA', task_type=None, base_model_name_or_path=None, inference_mode=True,
        r=rank, lora_alpha=whole(scale * rank), target_modules=list(layers), modules_to_save=modules or None,
        rank_pattern=odd, alpha_pattern={name: whole(scale * own) for name, own in odd.items()},
        lora_dropout=0., bias='none', fan_in_fan_out=False, use_rslora=False, use_dora=False, init_lora_weights=True)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write(os.path.join(folder, TENSORS), save(tensors, metadata=dict(format='pt')))
    write(os.path.join(folder, CONFIG), json.dumps(config, indent=2))


def import_peft(model: nn.Module, folder: str | os.PathLike) -> nn.Module:
    """Read the values of a PEFT LoRA adapter into a model tuned by LoRA; layers that it leaves out get a zero B.

    Args:
        model (nn.Module): a model or trunk tuned by LoRA, under the same names as the model that PEFT was given.
        folder (str): with `adapter_model.safetensors` and `adapter_config.json`.

    Returns:
        nn.Module: `model` itself.

    Raises:
        ValueError: no such files; another method than LoRA; whatever this model's LoRA cannot express, all at once.
            The model then has its old values.
    """
    layers = lora_layers(model)
    units = [unit for layer in layers.values() for unit in layer.pairs.values()]
    if any(isinstance(unit, Emptied) or unit.bits < 32 for unit in units):
        raise ValueError("the model's LoRA is quantised, pruned or shared, and cannot take the factors of a file of "
                         'PEFT: tune a new model with bits=32')
    config, tensors = read(folder)
    own, trained = model.state_dict(), others(model, layers)
    new, wrong = {}, foreign_options(config)
    for name, layer in layers.items():
        check_geometry(name, layer)
        keys = [f'{name}.lora_{part}.weight' for part in 'AB']
        if lone := set(keys) & set(tensors) and set(keys) - set(tensors):
            wrong.append(f'{name}: {lone.pop()} is missing beside its other half')
            continue
        if not set(keys) <= set(tensors):
            new.update({f'{name}.pairs.{i}.up': torch.zeros_like(pair.up) for i, pair in layer.pairs.items()})
            continue
        a, b = (tensors.pop(key) for key in keys)
        try:
            if odd := odd_values([(key, value, layer.weight) for key, value in zip(keys, (a, b))]):
                raise ValueError('; '.join(odd))
            factors = split(layer, a, b)
            ratio = scaling(config, name, len(a)) / layer.scale
        except ValueError as error:
            wrong.append(f'{name}: {error}')
            continue
        for i, (down, up) in zip(layer.pairs, factors):
            new.update({f'{name}.pairs.{i}.down': down,
                        f'{name}.pairs.{i}.up': up if math.isclose(ratio, 1) else ratio * up})
    if not any(name.endswith('.down') for name in new) and not wrong:
        wrong.append(f'it changes none of the layers {shorten(layers, 3)}')
    for name, value in tensors.items():
        if name in trained and value.shape == own[name].shape:
            wrong += odd_values([(name, value, own[name])])
            new[name] = value
        elif name not in own or not torch.equal(value.to(own[name]), own[name]):    # frozen, and saved along
            wrong.append(f'the model\'s LoRA has no place for {name} {tuple(value.shape)}')
    if wrong:
        raise ValueError(f'the adapter {folder} cannot be expressed by this model: {"; ".join(wrong[:3])}'
                         f'{f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""}')
    with torch.no_grad():
        for name, value in new.items():
            own[name].copy_(value)
    return model


def foreign_options(config):
    """What of a PEFT config e3va's LoRA is not, as parts of an error message."""
    wrong = [f'{name}={config[name]!r} is not plain LoRA' for name in FOREIGN if config.get(name)]
    if config.get('bias', 'none') != 'none':
        wrong.append(f'bias={config["bias"]!r} trains biases of the trunk too')
    if config.get('init_lora_weights', True) not in PLAIN_INITS:
        wrong.append(f'init_lora_weights={config["init_lora_weights"]!r} has changed the trunk; let PEFT convert it '
                     '(save_pretrained with path_initial_model_for_weight_conversion)')
    return wrong


def lora_layers(model):
    """{name in the model: layer} of the layers that LoRA adapts; ValueError if the model is not tuned by LoRA."""
    method = find_tuned(model)[1].tuning.method
    inside = [name for name, layer in model.named_modules() if isinstance(layer, LoRAAttention)]
    if inside:
        raise ValueError(f"{inside[0]} is torch's own attention, of which PEFT adapts other matrices: save the "
                         'delta (e3va.save_delta)')
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (LoRALinear, LoRAConv2d))
              and layer.slices}
    if not layers:
        raise ValueError(f'PEFT\'s adapter files hold LoRA, and the model is tuned by {type(method).__name__}: tune it '
                         'by LoRA, or save its delta (e3va.save_delta)')
    return layers


def others(model, layers):
    """What trains beside LoRA's factors (and the table of who shares them), {name: tensor}."""
    prefix = find_tuned(model)[0]
    known = (f'{prefix}{TABLE}.', *(f'{name}.pairs.' for name in layers))
    return {name: value for name, value in delta(model).items() if not name.startswith(known)}


@torch.no_grad()
def joined(layer):
    """(rank, (A, B)) of a layer's slices side by side."""
    pairs = list(served(layer.pairs).values())
    if isinstance(layer, LoRAConv2d):
        return as_kernels(layer, *(pairs[0].value(name) for name in ('down', 'up')))
    rank = len(pairs[0].down)
    b = layer.weight.new_zeros(layer.of, layer.width, len(pairs), rank)
    for i, (part, pair) in enumerate(zip(layer.slices, pairs)):
        b[part, :, i] = pair.value('up')
    return len(pairs) * rank, (torch.cat([pair.value('down') for pair in pairs]), b.flatten(2).flatten(0, 1))


def as_kernels(layer, down, up):
    """(rank, (A, B)) of a convolution: A from all channels, with zeros between the groups."""
    groups, own = layer.groups, layer.weight.shape[1]
    a = down.new_zeros(len(down), layer.in_channels, *layer.kernel_size)
    for i, block in enumerate(down.unflatten(0, (groups, -1)).unflatten(-1, (own, *layer.kernel_size))):
        a.unflatten(0, (groups, -1))[i, :, i * own:(i + 1) * own] = block
    return len(down), (a, up[:, :, None, None])


def from_kernels(layer, a, b):
    """[(down, up)] of a convolution from PEFT's A and B; ValueError where they cannot hold them."""
    pair, groups, own = next(iter(layer.pairs.values())), layer.groups, layer.weight.shape[1]
    if a.shape[1:] != (layer.in_channels, *layer.kernel_size) or b.shape != (len(layer.weight), len(a) // groups, 1, 1):
        raise ValueError(f'A {tuple(a.shape)} and B {tuple(b.shape)} are not of a convolution {layer.in_channels} -> '
                         f'{layer.out_channels} of {layer.kernel_size} in {groups} groups')
    if len(a) != len(pair.down):
        raise ValueError(f'it has rank {len(a)}, the model rank {len(pair.down)}; tune the model by LoRA with '
                         f'rank={len(a)}')
    blocks = a.unflatten(0, (groups, -1))
    down = torch.cat([blocks[i, :, i * own:(i + 1) * own] for i in range(groups)]).flatten(1)
    if not torch.equal(as_kernels(layer, down, b[:, :, 0, 0])[1][0], a):
        raise ValueError(f'its A goes across the {groups} groups of the convolution, and the model has one for each')
    return [(down, b[:, :, 0, 0])]


def check_geometry(name, layer):
    """ValueError for a convolution of which PEFT's A would be another: it takes size, stride and padding alone."""
    if isinstance(layer, LoRAConv2d) and ((layer.dilation != (1, 1) and layer.kernel_size != (1, 1))
                                          or layer.padding_mode != 'zeros'):
        raise ValueError(f'PEFT has no LoRA of {name}, a convolution with dilation={layer.dilation}, padding_mode='
                         f'{layer.padding_mode!r}: name others by targets=, or save the delta (e3va.save_delta)')


def split(layer, a, b):
    """[(down, up)] of a layer's pairs from PEFT's A (r, in) and B (out, r); ValueError where they cannot hold them."""
    if isinstance(layer, LoRAConv2d):
        return from_kernels(layer, a, b)
    n, width, rank = len(layer.pairs), layer.width, len(next(iter(layer.pairs.values())).down)
    if a.dim() != 2 or a.shape[1] != layer.in_features or b.shape != (layer.out_features, len(a)):
        raise ValueError(f'A {tuple(a.shape)} and B {tuple(b.shape)} are not of a layer {layer.in_features} -> '
                         f'{layer.out_features}')
    blocks = b.unflatten(0, (layer.of, width))
    touched = [i for i in range(layer.of) if blocks[i].any()]
    if set(touched) <= set(layer.slices):
        mine = blocks[list(layer.slices)]                               # (n, width, r)
        cut = mine.unflatten(-1, (n, -1)) if len(a) == n * rank else mine[:, :, None]
        if len(a) == n * rank and not any(cut[i, :, j].any() for i in range(n) for j in range(n) if i != j):
            return [(a[i * rank:(i + 1) * rank], cut[i, :, i]) for i in range(n)]
        if len(a) == rank:
            return [(a, up) for up in mine]
    names = 'q', 'k', 'v'
    change = f' and changes {", ".join(names[i] for i in touched)}' if layer.of == 3 and touched else ''
    have = f' on {", ".join(names[i] for i in layer.slices)}' if layer.of == 3 else ''
    raise ValueError(f'it has rank {len(a)}{change}, the model rank {rank}{have}; tune the model by LoRA with '
                     f'rank={len(a)} and these roles')


def whole(value):
    """An int where the value is one, as PEFT writes `lora_alpha`."""
    return round(value) if math.isclose(value, round(value)) else value


def scaling(config, name, rank):
    """PEFT's factor in front of B A on a layer."""
    patterns = config.get('alpha_pattern') or {}
    try:
        for pattern in patterns:
            foreign.check_pattern('alpha_pattern', pattern)
        alpha = next((patterns[key] for key in patterns if re.match(rf'(.*\.)?({key})$', name)),
                     config.get('lora_alpha'))
    except (TypeError, re.error) as error:
        raise ValueError(f'alpha_pattern={str(patterns):.100} is no table of names and numbers ({error})') from error
    return number('lora_alpha', alpha) / (rank ** 0.5 if config.get('use_rslora') else rank)


def read(folder):
    """(config, {name in the model: tensor}) of an adapter of PEFT; ValueError if it is not there or not of LoRA."""
    try:
        config = foreign.parse(foreign.read_text(os.path.join(folder, CONFIG)))
        tensors = {name.removeprefix(ROOT): value for name, value in load_file(os.path.join(folder, TENSORS)).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f'{folder} is no adapter of PEFT ({CONFIG} and {TENSORS}): {error}') from error
    if not isinstance(config, dict):
        raise ValueError(f'{folder} is no adapter of PEFT: its {CONFIG} holds a {type(config).__name__}')
    if config.get('peft_type') != 'LORA':
        raise ValueError(f'{folder} is an adapter of the type {config.get("peft_type")}; e3va reads LORA')
    return config, tensors
