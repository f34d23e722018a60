"""`e3va://DELTA[?base=FILE]` as a checkpoint, for every OpenMMLab API that loads one.

The base is loaded into a stock trunk, checked against the delta's record, and given out with the delta as one ordinary
checkpoint. So a delta can never meet a random or a wrong trunk, whatever the model is that receives it.
"""
import copy

from mmengine.registry import MODELS as ROOT
from mmengine.runner import CheckpointLoader

from . import delta_file
from .delta import find_base
from .tuned import find_tuned, tune


@CheckpointLoader.register_scheme(prefixes='e3va://')
def load_scheme(filename, map_location=None, logger=None):
    """An ordinary checkpoint dict, on the CPU; ValueError for a damaged delta or a base that is not found."""
    path, _, base = filename[len('e3va://'):].partition('?base=')
    tensors, meta = delta_file.read(path)
    if meta['trunk']['config'] is None:
        raise ValueError(f'{path} was saved from a model that was not built from a config, so its trunk cannot be '
                         'rebuilt; build and tune the model, then call e3va.load_delta')
    prefix = meta['trunk']['prefix']
    trunk = tune(ROOT.build(copy.deepcopy(meta['trunk']['config'])), meta['method'])
    find_base(find_tuned(trunk)[1], path, meta, base or None)
    state = {prefix + name: value for name, value in trunk.state_dict().items() if name in trunk.tuning.keys}
    state.update(tensors)
    return dict(state_dict=state, meta=dict(dataset_meta=meta['dataset_meta'], e3va=meta))
