"""`e3va://DELTA[?base=FILE]` as a checkpoint, for every OpenMMLab API that loads one.

The base is loaded into a stock trunk, checked against the delta's record, and given out with the delta as one ordinary
checkpoint. So a delta can never meet a random or a wrong trunk, whatever the model is that receives it.
"""
from collections import OrderedDict

from torch import nn

from .. import compat
from ..files import foreign
from ..layers import QuantisedLinear
from ..tuned import tune
from . import file as delta_file
from .base import find_base, inside
from .load import recorded_method
from .merge import merge


def register(checkpoint):
    """Make it known to mmengine's module of that name."""
    checkpoint.CheckpointLoader.register_scheme(prefixes='e3va://', loader=load_scheme, force=True)


def load_scheme(filename, map_location=None, logger=None):
    """An ordinary checkpoint dict, on the CPU; ValueError for a damaged delta or a base that is not found."""
    path, _, base = filename[len('e3va://'):].partition('?base=')
    return whole_checkpoint(path, base or None)


def whole_checkpoint(path, base=None, merged=False):
    """A delta and its base as one checkpoint, for the config that was trained.

    Args:
        path (str): the delta.
        base (str): file or URL of the trunk's weights; default: what the delta recorded.
        merged (bool): for the stock config instead; ValueError where the method cannot be merged.

    Returns:
        dict: `state_dict`, and `meta` with the classes.
    """
    tensors, meta = delta_file.read(path)
    state, metadata, rest = {}, {}, dict(tensors)
    for recorded in meta['trunks']:
        prefix = recorded['prefix']
        trunk = rebuilt(path, recorded)
        find_base(trunk, path, recorded, base)
        stock = {name: value for name, value in trunk.state_dict().items() if name in trunk.tuning.keys}
        trunk.load_state_dict({**stock, **inside(tensors, prefix)})
        trunk = merge(trunk) if merged else trunk
        own = trunk.state_dict()
        state.update((prefix + name, value) for name, value in own.items())
        rest = {name: value for name, value in rest.items() if not name.startswith(prefix)}
        metadata[prefix[:-1]] = own._metadata.get('', {})
    for name, (bits, out, *width) in meta['packed'].items() if merged else ():
        if name in rest:                                                # a quantised head: the stock one has its values
            layer, place = QuantisedLinear(nn.Linear(*width, out), bits).eval(), name.rpartition('.')[0]
            layer.load_state_dict({key: rest.pop(f'{place}.{key}') for key in layer.state_dict()})
            rest.update((f'{place}.{key}', value) for key, value in layer.merged().state_dict().items())
    state = OrderedDict(**state, **rest)
    state._metadata = metadata                                          # torch's, in which a load finds the method
    return dict(state_dict=state, meta=dict(dataset_meta=meta['dataset_meta'], e3va=meta))


def rebuilt(path, recorded):
    """The tuned trunk that a delta records, with values still at random; ValueError where it names what is not here."""
    if recorded['config'] is None:
        raise ValueError(f'{path} was saved from a model that was not built from a config, so its trunk cannot be '
                         'rebuilt; build and tune the model, then call e3va.load_delta')
    compat.patch_mmpretrain()
    try:
        return tune(foreign.build_trunk(recorded['config']), recorded_method(recorded['method']),
                    config=foreign.trunk_config(recorded['config']))
    except ValueError as error:
        raise ValueError(f'the model of the delta {path} cannot be rebuilt: {error}') from error
