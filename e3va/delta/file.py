"""The file of a delta: safetensors, one JSON of metadata, and a checksum over both."""
import hashlib
import json
import os

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..files import foreign
from ..files.whole import replacing
from ..layers.quantised import BITS, pack, unpack

VERSION = 2                                                             # 1: a single trunk, and written for one still


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
    text = json.dumps(dict(meta, version=VERSION if 'trunks' in meta else 1), default=plain)
    with replacing(path) as file:
        file.write(save(tensors, metadata=dict(e3va=text, sha256=fingerprint(tensors, text))))


def read(path):
    """({name: tensor}, meta) of a delta; ValueError if the file is not one, or is damaged.

    `meta` has `trunks`, a list with an entry for each tuned trunk (see `delta.describe`), and `dataset_meta`. A matrix
    that is written as codes comes as two entries of a state dict, its floats and its statistics.
    """
    if not os.path.isfile(path):
        raise ValueError(f'there is no delta file {path}')
    try:
        with open(path, 'rb') as file:
            length = int.from_bytes(file.read(8), 'little')
        foreign.parse(foreign.read_text(path, 8, length))
        with safe_open(path, framework='pt') as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f'{path} is not a readable delta (truncated, damaged, or another format): {error}') from error
    if 'e3va' not in header:
        raise ValueError(f'{path} is a safetensors file, but no delta of e3va; save_delta or DeltaHook writes one')
    if fingerprint(tensors, header['e3va']) != header.get('sha256'):
        raise ValueError(f'{path} is damaged: its checksum does not fit its content; copy it again')
    try:
        meta = check(foreign.parse(header['e3va']))
        for name, (bits, *shape) in meta['packed'].items():
            data = tensors.get(name)
            if data is None or data.dtype is not torch.uint8 or data.dim() != 1:
                raise ValueError(f'{name} is recorded as packed, and is not')
            tensors[name], tensors[f'{name}_statistics'] = unpack(data, bits, shape)
    except ValueError as error:
        raise ValueError(f'{path} is no delta that this e3va can read: {error}') from error
    return tensors, meta


def check(meta):
    """The metadata of a file, whoever wrote it, in the form in which it is used; ValueError for what is amiss."""
    version = expect('version', expect('metadata', meta, dict).get('version'), int)
    if not 1 <= version <= VERSION:
        raise ValueError(f'it has format {version}, this e3va reads 1 to {VERSION}; update e3va')
    trunks = meta.get('trunks')
    if version == 1:                        # one trunk, and its method and base beside it
        trunks = [dict(expect('trunk', meta.get('trunk'), dict), method=meta.get('method'), base=meta.get('base'))]
    for trunk in expect('trunks', trunks, list):
        for name, kind in (('type', str), ('prefix', str), ('sha256', str), ('method', dict)):
            expect(name, expect('trunks', trunk, dict).get(name), kind)
        for name, kind in (('config', dict), ('base', str)):
            expect(name, trunk.setdefault(name), (kind, type(None)))
        expect('method.type', trunk['method'].get('type'), str)
    if not trunks:
        raise ValueError('it is of no trunk')
    packed = expect('packed', meta.get('packed', {}), dict)
    for name, entry in packed.items():
        if not (isinstance(entry, list) and len(entry) > 1 and all(type(value) is int for value in entry)
                and entry[0] in BITS[:-1] and min(entry) > 0):
            raise ValueError(f'packed: {name} is {str(entry):.80} and not its bits and shape')
    dataset_meta = expect('dataset_meta', meta.get('dataset_meta') or {}, dict)
    if isinstance(dataset_meta.get('palette'), list):                   # JSON has no tuples, and mmdet draws by these
        dataset_meta = dict(dataset_meta, palette=[tuple(one) if isinstance(one, list) else one
                                                   for one in dataset_meta['palette']])
    for name in ('config', 'commit'):
        expect(name, meta.get(name), (str, type(None)))
    return dict(meta, trunks=trunks, packed=packed, dataset_meta=dataset_meta)


def expect(name, value, kind):
    """`value` if it is of a type, else ValueError."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        kinds = kind if isinstance(kind, tuple) else (kind, )
        raise ValueError(f'{name} is {str(value):.80} and not {" or ".join(one.__name__ for one in kinds)}')
    return value


def plain(value):
    """JSON for what a config may hold besides: tuples become lists, classes their names, the rest its text."""
    if isinstance(value, (tuple, set, range)):
        return list(value)
    if isinstance(value, type):                                         # torch's layers have no prefix in a registry
        library = value.__module__.partition('.')[0]
        return value.__name__ if library in ('torch', 'mmengine', 'mmcv') else f'{library}.{value.__name__}'
    return getattr(value, 'tolist', lambda: str(value))()
