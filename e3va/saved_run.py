"""What a run has left: the state dict and the method of a checkpoint or a delta, without building a model."""
from pathlib import Path

from mmengine.config import Config
from mmengine.runner.checkpoint import _load_checkpoint

from . import delta_file


def read(path):
    """(state dict, config of the method) of a checkpoint or a delta; the latter is empty where none is recorded."""
    if Path(path).suffix == '.safetensors':
        state, meta = delta_file.read(path)
        return state, meta['method']
    if not Path(path).is_file():
        raise ValueError(f'there is no checkpoint {path}')
    checkpoint = _load_checkpoint(path, map_location='cpu', logger='silent')
    config = Config.fromstring(checkpoint.get('meta', {}).get('cfg') or '', '.py')
    backbone = (config.get('model') or {}).get('backbone') or {}
    return checkpoint.get('state_dict', checkpoint), backbone.get('method') or {}
