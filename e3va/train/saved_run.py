"""What a run has left: the state dict and the method of a checkpoint or a delta, without building a model."""
from pathlib import Path

from ..delta import file as delta_file
from ..files.checkpoint import read_checkpoint, recorded_config
from ..loading import RECORD
from .resume import newest_checkpoint


def run_of(path):
    """What a checkpoint or a delta holds of a run; of a run's folder its last checkpoint.

    Returns:
        (state dict, config of the backbone, prefix of the trunk's names, default scope): the config has `trunk` and
        `method`, of a model built without a config it lacks what is not recorded; a delta records no scope.

    Raises:
        ValueError: no file, a folder without a checkpoint, or a damaged delta.
    """
    if Path(path).is_dir():
        found = newest_checkpoint(str(path), resumable=False)
        if not found:
            raise ValueError(f'{path} is a folder in which no run has left a checkpoint: give that of a run, or a file')
        path = found
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
