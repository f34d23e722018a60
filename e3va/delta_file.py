"""The file of a delta: safetensors, one JSON of metadata, and a checksum over both."""
import hashlib
import json
import os

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .files import replacing
from .layers.quantised import pack, unpack

VERSION = 1


def fingerprint(tensors, text=''):
    """sha256 of a text and of {name: tensor}: names, types, shapes and values."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)} '.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write(path, tensors, meta, bits=None):
    """Write {name: tensor} and the JSON-able `meta`; the file is replaced as a whole, or not at all.

    Args:
        bits (dict): {name: bits} of the matrices that are written as codes, see `layers.quantised`.
    """
    tensors, bits = dict(tensors), bits or {}
    meta = dict(meta, packed={name: (count, *tensors[name].shape) for name, count in bits.items()})
    for name, count in bits.items():
        tensors[name] = pack(tensors[name], tensors.pop(f'{name}_statistics'), count)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps(dict(meta, version=VERSION), default=plain)
    with replacing(path) as file:
        file.write(save(tensors, metadata=dict(e3va=text, sha256=fingerprint(tensors, text))))


def read(path):
    """({name: tensor}, meta) of a delta; ValueError if the file is not one, or is damaged.

    A matrix that is written as codes comes as two entries of a state dict, its floats and its statistics.
    """
    if not os.path.isfile(path):
        raise ValueError(f'there is no delta file {path}')
    try:
        with safe_open(path, framework='pt') as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not a readable delta (truncated, damaged, or another format): {error}') from error
    if 'e3va' not in header:
        raise ValueError(f'{path} is a safetensors file, but no delta of e3va; save_delta or DeltaHook writes one')
    if fingerprint(tensors, header['e3va']) != header.get('sha256'):
        raise ValueError(f'{path} is damaged: its checksum does not fit its content; copy it again')
    meta = json.loads(header['e3va'])
    if meta['version'] > VERSION:
        raise ValueError(f'{path} has format {meta["version"]}, this e3va reads up to {VERSION}; update e3va')
    for name, (bits, *shape) in meta.get('packed', {}).items():
        tensors[name], tensors[f'{name}_statistics'] = unpack(tensors[name], bits, shape)
    return tensors, meta


def plain(value):
    """JSON for what a config may hold besides: tuples become lists, the rest its text."""
    return list(value) if isinstance(value, (tuple, set, range)) else getattr(value, 'tolist', lambda: str(value))()
