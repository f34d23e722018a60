"""Checkpoints are read as data: what in them would run code is refused, by whichever loader they come.

torch reads a pickle with `weights_only=True` by an allow-list; mmengine falls back to the pickle that runs code where
that fails, and allows `getattr`, by which any function can be reached. Here the list has what training checkpoints of
OpenMMLab, timm and the authors of public weights hold, and there is no falling back unless the user asks for it.
"""
import argparse
import ast
import contextlib
import io
import os
import pathlib
import pickle
import re
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO
from urllib.parse import urlparse

import torch
from mmengine.logging import print_log
from mmengine.logging.history_buffer import HistoryBuffer
from safetensors import SafetensorError
from safetensors.torch import load_file

HEADS = {                                                               # how files begin that are no checkpoints
    b'version https://git-lfs': 'a pointer of git-lfs: fetch the file itself with `git lfs pull`',
    b'<': 'a page of HTML or XML, as a server sends in the place of a file: download it again',
}
_trusted = False


@contextlib.contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """Read the checkpoints that are loaded in this context by plain pickle, which runs what they ask for."""
    global _trusted
    before, _trusted = _trusted, trust
    try:
        yield
    finally:
        _trusted = before


class CodeInside(ValueError):
    """A checkpoint that is whole, and can be read by running what it asks for alone."""


def read_checkpoint(file: str | os.PathLike | BinaryIO, map_location: str | torch.device = 'cpu',
                    **options: Any) -> dict:
    """What a checkpoint holds: a dict, of a `.pth` in any format of torch or of a `.safetensors`.

    Args:
        file (str or file object): a local file.
        **options: of `torch.load`, e.g. `mmap=True`.

    Raises:
        ValueError: no such file, one that is no checkpoint or is damaged; `CodeInside` for one that would run code
            (inside `trusting` it runs).
    """
    name = file
    if not hasattr(file, 'read'):
        name = file = os.path.expanduser(os.fspath(file))
        check_file(file)
    if str(name).endswith('.safetensors'):
        try:
            return load_file(name, device=str(map_location or 'cpu'))
        except (SafetensorError, OSError) as error:
            raise ValueError(f'{name} is not a readable checkpoint (truncated or damaged): {error}') from error
    return check_content(name, load(file, name, map_location, **options))


def check_file(path):
    """ValueError for what is no file, or no checkpoint by its first bytes."""
    if not path:
        raise ValueError("a checkpoint is named '': give a file or URL, or leave it out")
    if not os.path.isfile(path):
        raise ValueError(f'{path} is a folder, and a checkpoint is a file' if os.path.isdir(path) else
                         f'there is no checkpoint {path}')
    try:
        with open(path, 'rb') as opened:
            head = opened.read(64).lstrip()
    except OSError as error:
        raise ValueError(f'the checkpoint {path} cannot be read: {error.strerror}') from error
    if not head:
        raise ValueError(f'the checkpoint {path} is empty: copy or download it again')
    for start, what in HEADS.items():
        if head.startswith(start):
            raise ValueError(f'{path} is no checkpoint, but {what}')


def load(file, name, map_location, **options):
    """torch's reader, by the allow-list; ValueError says what of a file would be executed, or that it is damaged."""
    try:
        if _trusted:
            return torch.load(file, map_location=map_location, weights_only=False, **options)
        with torch.serialization.safe_globals(allowed()), warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Detected pickle protocol')
            return torch.load(file, map_location=map_location, weights_only=True, **options)
    except Exception as error:                                          # a pickle can fail in any way
        wanted = [] if _trusted else executed(file, error)
        if wanted:
            raise CodeInside(
                f'{name} holds more than weights: to read it, {", ".join(wanted)} would be executed. If you trust '
                'whoever made it, give --trust-checkpoint (in Python: with e3va.trusting(): ...)') from None
        # torch's own first words advise to read it unsafely
        why = str(error).rpartition('WeightsUnpickler error: ')[2].strip() or type(error).__name__
        raise ValueError(f'{name} is not a readable checkpoint (truncated, damaged, or another format): '
                         f'{why.splitlines()[0].partition(". ")[0]}') from error


def executed(file, error):
    """Names of the functions and classes beyond the allow-list that a checkpoint asks for."""
    found = re.findall(r'GLOBAL (\S+)', str(error)) if isinstance(error, pickle.UnpicklingError) else []
    if isinstance(file, (str, io.BytesIO)) and found:
        with contextlib.suppress(Exception):                            # reads the newer format alone
            if hasattr(file, 'seek'):
                file.seek(0)
            with torch.serialization.safe_globals(allowed()):
                found += torch.serialization.get_unsafe_globals_in_checkpoint(file)
    return sorted({name.removeprefix('builtins.') for name in found})


def check_content(name, found):
    """The dict that was read, less what mmengine would execute of it; ValueError where it is none."""
    state = found.get('state_dict', found) if isinstance(found, dict) else None
    if not isinstance(state, dict):
        kind = type(found if state is None else state).__name__
        raise ValueError(f'{name} holds a {kind}, and a checkpoint is a dict of names and tensors')
    if odd := [key for key in state if not isinstance(key, str)]:
        raise ValueError(f'{name} names entries by {type(odd[0]).__name__} ({odd[0]!r}), and a checkpoint by text')
    meta = found.get('meta')
    if not _trusted and isinstance(meta, dict) and meta.pop('config', None) is not None:
        print_log(f'{name}: its meta.config, a program that mmengine would run on resuming, is left out')
    return found


def allowed():
    """What the reader may call besides torch's own: classes and functions that build data alone."""
    import numpy as np
    core = getattr(np, '_core', None) or np.core
    both = [(function, f'numpy.{place}.multiarray.{function.__name__}') for place in ('_core', 'core')
            for function in (core.multiarray._reconstruct, core.multiarray.scalar)]
    dtypes = {type(np.dtype(kind)) for kind in np.typecodes['All']}
    return [*both, np.ndarray, np.dtype, *dtypes, slice, argparse.Namespace, HistoryBuffer,
            pathlib.PosixPath, pathlib.PurePosixPath, (statistic, 'builtins.getattr')]


def statistic(owner, name):
    """In the place of `getattr`, by which mmengine's logs name the statistics of a `HistoryBuffer`."""
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    raise pickle.UnpicklingError('GLOBAL builtins.getattr is asked for')


# ---- What a checkpoint says of its run -------------------------------------------------------------------------------


def recorded_config(checkpoint):
    """What a checkpoint says of its run, {name: plain values}: its config is a program, which is read and not run."""
    meta = checkpoint.get('meta')
    text = meta.get('cfg') if isinstance(meta, dict) else None
    found = {}
    try:
        statements = ast.parse(text).body if isinstance(text, str) else ()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found[statement.targets[0].id] = value_of(statement.value)
    model = found.get('model')
    if not isinstance(model, dict) or not isinstance(model.get('backbone', {}), dict):
        found.pop('model', None)
    return found


def value_of(node):
    """The value of an expression of plain ones, as mmengine writes configs; None for what it would take to run."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {word.arg: value_of(word.value) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        return {value_of(key): value_of(value) for key, value in zip(node.keys, node.values)
                if isinstance(key, ast.Constant)}
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [value_of(item) for item in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


# ---- mmengine's loaders ----------------------------------------------------------------------------------------------


def load_from_local(filename, map_location=None):
    """The loader of local files."""
    return read_checkpoint(filename, map_location)


def load_url(url, model_dir=None, map_location=None, progress=True, check_hash=False, file_name=None):
    """mmengine's: a file of the web, kept where torch.hub keeps its files."""
    path = cached(url, model_dir, file_name)
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        prefix = torch.hub.HASH_REGEX.search(os.path.basename(path)) if check_hash else None
        torch.hub.download_url_to_file(url, path, prefix and prefix[1], progress=progress)
    return read_checkpoint(path, map_location)


def cached(url, model_dir=None, file_name=None):
    """Where torch.hub keeps the file of a URL."""
    folder = model_dir or os.path.join(torch.hub.get_dir(), 'checkpoints')
    return os.path.join(folder, file_name or os.path.basename(urlparse(url).path))


def install(checkpoint):
    """Have mmengine's module of that name read by `read_checkpoint`, and with it every library that takes its loader.
    """
    checkpoint.CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    checkpoint.load_url = load_url                                      # of http://, openmmlab://, torchvision://, ...
    if hasattr(checkpoint, '_safe_torch_load'):                         # s3://, petrel://, pavi://
        checkpoint._safe_torch_load = load_from_local
