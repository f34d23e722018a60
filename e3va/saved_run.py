"""What a run has left: the state dict and the method of a checkpoint or a delta, without building a model."""
from pathlib import Path

from mmengine.config import Config
from mmengine.runner.checkpoint import _load_checkpoint, find_latest_checkpoint

from . import delta_file


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
        backbone = dict(meta['trunk']['config'] or {}, method=meta['method'])
        backbone['trunk'] = backbone.pop('type', None)
        return state, backbone, meta['trunk']['prefix'], None
    if not Path(path).is_file():
        raise ValueError(f'there is no checkpoint {path}')
    checkpoint = _load_checkpoint(path, map_location='cpu', logger='silent')
    config = Config.fromstring(checkpoint.get('meta', {}).get('cfg') or '', '.py')
    backbone = (config.get('model') or {}).get('backbone') or {}
    return checkpoint.get('state_dict', checkpoint), backbone, 'backbone.', config.get('default_scope')


def read(path):
    """(state dict, config of the method) of a checkpoint or a delta; the latter is empty where none is recorded."""
    state, backbone, *_ = run_of(path)
    return state, backbone.get('method') or {}
