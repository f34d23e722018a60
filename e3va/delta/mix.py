"""Between trunk and task: the strength of a delta, and sums of deltas of one method on one base.

What a method adds is w(delta) - w(trunk). Where that is linear in entries of the delta (`Method.linear`), a share of it
is a share of these entries, and the model is the interpolation of all weights that WiSE-FT makes (Wortsman et al.,
CVPR 2022), exactly. Where a nonlinearity stands between, half of the entries is no half of the change: refused.
"""
import ast
import os
from collections.abc import Sequence

import torch

from .. import loading
from ..methods.lora import LoRA
from . import file as delta_file
from .address import place
from .base import inside
from .load import recorded_method


def check_linear(method, what):
    if method.linear is None:
        raise ValueError(f'{what}: {type(method).__name__} is not linear in what it trains (an activation, a prompt or '
                         'a rounding stands between), so that a share of its entries is no share of the change. It '
                         'works for LoRA, DMLoRA, FacT, FourierFT, MoRA, RepAdapter, SSF, GPS, BitFit, NormTuning, '
                         'Partial')


def neutral(name, method, stock, tensors):
    """What an entry of a trunk's delta is where nothing was trained; None for one that stays as it is."""
    if name in stock:
        return stock[name]
    if method.tunes_entries:
        layer, _, leaf = name.rpartition('.')
        weight = stock.get(f'{layer}.weight', stock.get(f'{layer}.in_proj_weight'))
        return weight.flatten()[tensors[f'{layer}.index'].long()] if leaf == 'values' else None
    value = method.linear.get(name.rpartition('.')[2])
    return None if value is None else torch.full_like(tensors[name], value)


@torch.no_grad()
def weakened(tensors, method, stock, strength, what):
    """The entries of a trunk's delta with `strength` of its change: 0 is the trunk, 1 the task.

    Neck and heads are not among them: the trunk has none, so they are the task's at any strength.

    Args:
        tensors (dict): {name in the trunk: tensor}.
        stock (dict): the stock trunk's values of those of its own entries that the delta has, and, under GPS, of the
            weights.

    Raises:
        ValueError: a method that is not linear in its delta.
    """
    if strength == 1:
        return tensors
    check_linear(method, f'{what}?strength={strength:g}')
    found = dict(tensors)
    for name, value in tensors.items():
        zero = neutral(name, method, stock, tensors) if value.is_floating_point() else None
        if zero is not None and not name.endswith(('running_mean', 'running_var')):
            found[name] = zero + strength * (value.to(zero) - zero)
    return found


@torch.no_grad()
def blend(deltas: Sequence[str | os.PathLike], weights: Sequence[float], out: str | os.PathLike | None = None
          ) -> dict[str, torch.Tensor]:
    """A weighted sum of deltas of one method on one base: what they add to each weight of the trunk is summed.

    LoRA's products are summed exactly, by factors side by side: its rank is the sum of theirs. Neck and heads, and what
    trains whole, are averaged, so they must have the same shapes, and the weights must sum to 1.

    Args:
        deltas (sequence of str): files, folders or `e3va://` addresses.
        weights (sequence of float): one for each.
        out (str): file to write; it is a delta like any other.

    Returns:
        dict: {name: tensor}.

    Raises:
        ValueError: deltas of other methods, bases, layers or heads; a method that is not linear in its delta, or whose
            sums it cannot hold.
    """
    if len(deltas) < 2 or len(deltas) != len(weights):
        raise ValueError(f'blend takes two deltas or more and a weight for each, not {len(deltas)} and {len(weights)}')
    if abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f'the weights {list(weights)} sum to {sum(weights):g}, and must to 1: heads and norms are '
                         'averaged. For less of a task load it by e3va://FILE?strength=...')
    paths = [place(one)[0] for one in deltas]
    read = [delta_file.read(path) for path in paths]
    first, meta = read[0]
    for path, (_, other) in zip(paths[1:], read[1:]):
        check_partners(paths[0], meta, path, other)
    methods = [recorded_method(other['trunks'][0]['method']) for _, other in read]
    method, record = methods[0], dict(meta['trunks'][0])
    check_linear(method, 'blend')
    prefix = record['prefix']
    parts = [tensors for tensors, _ in read]
    if isinstance(method, LoRA):
        parts, record['method'] = side_by_side(parts, methods, weights, prefix, paths)
    elif method.linear and not set(method.linear) >= {
            leaf for leaf in (name.rpartition('.')[2] for name in inside(first, prefix))
            if leaf not in loading.STOCK_LEAVES}:
        raise ValueError(f'blend: {type(method).__name__} cannot hold the sum of two of its deltas (each has entries '
                         'or factors of its own): merge each (merge_delta.py --stock) and average these')
    for path, other in zip(paths[1:], parts[1:]):
        shapes = [name for name in {**parts[0], **other} if getattr(parts[0].get(name), 'shape', 0)
                  != getattr(other.get(name), 'shape', 1)]
        if shapes:
            raise ValueError(f'{paths[0]} and {path} have other entries, or in other shapes: '
                             f'{loading.shorten(sorted(shapes), 3)}. Are they of the same classes and layers?')
    mixed = {name: sum(w * part[name].float() for w, part in zip(weights, parts)).to(value.dtype)
             if value.is_floating_point() else value for name, value in parts[0].items()}
    if isinstance(method, LoRA):                                        # the weights are in the factors already
        mixed.update((name, value) for name, value in parts[0].items() if is_factor(name, prefix))
    if out is not None:
        delta_file.write(out, mixed, dict(trunks=[record], dataset_meta=meta['dataset_meta'],
                                          config=reranked(meta.get('config'), record['method']),
                                          commit=meta.get('commit'), blend=dict(zip(map(str, paths), weights))))
    return mixed


def check_partners(a, meta, b, other):
    """ValueError where two deltas cannot be summed."""
    one, two = meta['trunks'], other['trunks']
    if len(one) > 1 or len(two) > 1:
        raise ValueError('blend takes deltas of one tuned trunk each')
    if one[0]['method']['type'] != two[0]['method']['type']:
        raise ValueError(f'{a} is of {one[0]["method"]["type"]} and {b} of {two[0]["method"]["type"]}: blend takes one '
                         'method')
    if one[0]['sha256'] != two[0]['sha256']:
        raise ValueError(f'{a} and {b} were trained on other frozen weights (their sha256 differ), or train others: '
                         'blend takes deltas of one base')
    free = ('rank', 'alpha') if one[0]['method']['type'] in ('LoRA', 'E3VAMix') else ()
    options = [{key: value for key, value in record[0]['method'].items() if key not in free} for record in (one, two)]
    if options[0] != options[1]:
        raise ValueError(f'{a} was trained with {one[0]["method"]} and {b} with {two[0]["method"]}: blend takes one '
                         'setting of a method')
    if meta['packed'] or other['packed']:
        raise ValueError('blend takes no deltas of few bits: the sum of codes is none')


def is_factor(name, prefix):
    return name.startswith(prefix) and '.pairs.' in name and name.rpartition('.')[2] in ('down', 'up')


def side_by_side(parts, methods, weights, prefix, paths):
    """(deltas, method): LoRA's factors of all deltas in each of them, weights and scales in the up factors."""
    names = [{name for name in part if is_factor(name, prefix)} for part in parts]
    if any(one != names[0] for one in names) or any('pear.served_by' in name for name in parts[0]):
        raise ValueError(f'{paths[0]} and {paths[1]} adapt other layers, or were pruned: blend takes the same layers')
    rank = sum(method.rank for method in methods)
    joined = {}
    for name in names[0]:
        if name.endswith('.down'):
            joined[name] = torch.cat([part[name] for part in parts])
        elif any(part[name].shape[1] != method.rank for method, part in zip(methods, parts)):
            raise ValueError(f'blend: {name} is of a convolution in groups, whose factors cannot stand side by side')
        else:
            joined[name] = torch.cat([weight * method.alpha / method.rank * part[name].float() for weight, method, part
                                      in zip(weights, methods, parts)], 1).to(parts[0][name].dtype)
    config = dict(methods[0].config, rank=rank, alpha=rank)
    return [{**part, **joined} for part in parts], config


def reranked(text, method):
    """The recorded config with the method of a sum."""
    if text is None:
        return None
    found = ast.literal_eval(text)
    if isinstance(found, dict) and isinstance(found.get('model', {}).get('backbone'), dict):
        found['model']['backbone']['method'] = dict(method)
    return repr(found)
