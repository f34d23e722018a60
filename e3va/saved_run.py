"""What a run has left: the state dict and the method of a checkpoint or a delta, without building a model."""
import ast
from pathlib import Path

from mmengine.runner.checkpoint import find_latest_checkpoint

from . import delta_file
from .loading import RECORD
from .trusted import read_checkpoint


def run_of(path):
    """What a checkpoint or a delta holds of a run; of a run's folder its last checkpoint.

    Returns:
        (state dict, config of the backbone, prefix of the trunk's names, default scope): the config has `trunk` and
        `method`, of a model built without a config it lacks what is not recorded; a delta records no scope.

    Raises:
        ValueError: no file, a folder without a checkpoint, or a damaged delta.
    """
    if Path(path).is_dir():
        recorded = find_latest_checkpoint(str(path))
        if not recorded:
            raise ValueError(f'{path} is a folder in which no run has left a checkpoint: give that of a run, or a file')
        inside = Path(path, Path(recorded).name)                        # it may have moved since
        path = str(inside) if inside.is_file() else recorded
    if Path(path).suffix == '.safetensors':
        state, meta = delta_file.read(path)
        if len(meta['trunks']) > 1:
            raise ValueError(f'{path} is of {len(meta["trunks"])} tuned trunks, and this shows one')
        trunk = meta['trunks'][0]
        backbone = dict(trunk['config'] or {}, method=trunk['method'])
        backbone['trunk'] = backbone.pop('type', None)
        return state, backbone, trunk['prefix'], None
    checkpoint = read_checkpoint(path)
    config = recorded_config(checkpoint)
    backbone = config.get('model', {}).get('backbone', {})
    return checkpoint.get('state_dict', checkpoint), backbone, 'backbone.', config.get('default_scope')


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
    return {name: value for name, value in found.items() if name != 'model' or is_model(value)}


def is_model(value):
    return isinstance(value, dict) and isinstance(value.get('backbone', {}), dict)


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


def recorded_method(checkpoint):
    """What a checkpoint says of the method that it was trained with, as text; None for a stock one, and for others'."""
    state = checkpoint.get('state_dict', checkpoint)
    for entry in (getattr(state, '_metadata', None) or {}).values():
        if isinstance(entry, dict) and isinstance(entry.get(RECORD), str):
            return entry[RECORD]
    method = recorded_config(checkpoint).get('model', {}).get('backbone', {}).get('method')
    return str(method) if isinstance(method, dict) and 'type' in method else None


def read(path):
    """(state dict, config of the method) of a checkpoint or a delta; the latter is empty where none is recorded."""
    state, backbone, *_ = run_of(path)
    return state, backbone.get('method') or {}
