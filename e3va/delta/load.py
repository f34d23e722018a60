"""A saved delta onto a model, all of it or nothing."""
import copy
import logging
import os

import torch
from mmengine.logging import print_log
from torch import nn

from .. import loading
from ..files import foreign
from ..layers.quantised import quantised_entries
from ..loading import shorten
from ..methods import build_method
from ..tuned import tuned_trunks, uncompiled
from . import file as delta_file
from .address import place
from .base import find_base, inside
from .extract import delta, frozen, frozen_names
from .file import fingerprint

FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64


@torch.no_grad()
def load_delta(model: nn.Module, path: str | os.PathLike, base: str | None = None) -> nn.Module:
    """Load a saved delta onto a tuned model, and onto the very trunk that it was trained on.

    Args:
        model (nn.Module): built from the same config (or tuned by the same method) as the model that was saved.
        path (str): the file, its folder, or an `e3va://` address.
        base (str): file or URL of the trunk's weights. Default: the weights that the trunk has, if they are the right
            ones, else the file that the delta recorded. A URL that it recorded is not fetched: give it as `base`.

    Returns:
        nn.Module: `model` itself.

    Raises:
        ValueError: a damaged file; missing, extra or misshapen entries, or values that no training can have left; a
            base that is not the recorded one. The model is then as it was.
    """
    path, base, strength = place(path, base)
    if strength != 1:
        raise ValueError(f'{path}: load_delta takes a delta as it is; with a strength load it as a checkpoint, e3va://')
    tensors, meta = delta_file.read(path)
    given, model = model, uncompiled(model)
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
    return given


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
    foreign.check_options(config)
    try:
        return build_method(config)
    except TypeError as error:                                          # a value of another kind than an option takes
        raise ValueError(f'the recorded method {str(config):.200} cannot be built: {error}') from error
