"""`e3va://DELTA[?base=FILE]` (see `address`) as a checkpoint, for every OpenMMLab API that loads one.

The base is loaded into a stock trunk, checked against the delta's record, and given out with the delta as one ordinary
checkpoint. So a delta can never meet a random or a wrong trunk, whatever the model is that receives it.
"""
import contextlib
import os
from collections import OrderedDict
from contextvars import ContextVar

from torch import nn

from .. import compat
from ..files import foreign
from ..layers import QuantisedLinear
from ..layers.quantised import quantised_entries
from ..tuned import tune
from . import file as delta_file
from .address import place
from .base import find_base, inside, size_of
from .extract import delta
from .load import misfits, recorded_method
from .merge import merge
from .mix import weakened

LEAST = 2 ** 19                         # values that any delta gets room for: what is wrong with a small base is said
being_read = ContextVar('being_read', default=())


def register(checkpoint):
    """Make it known to mmengine's module of that name."""
    checkpoint.CheckpointLoader.register_scheme(prefixes='e3va://', loader=load_scheme, force=True)


def load_scheme(filename, map_location=None, logger=None):
    """An ordinary checkpoint dict, on the CPU; ValueError for a damaged delta or a base that is not found."""
    path, base, strength = place(filename)
    with once(path):
        return whole_checkpoint(path, base, strength=strength)


@contextlib.contextmanager
def once(path):
    """ValueError where a delta is its own base, or that of its base."""
    place, above = os.path.realpath(path), being_read.get()
    if place in above:
        raise ValueError(f'{path} is its own base')
    token = being_read.set((*above, place))
    try:
        yield
    finally:
        being_read.reset(token)


def whole_checkpoint(path, base=None, merged=False, strength=1.):
    """A delta and its base as one checkpoint, for the config that was trained.

    Args:
        path (str): the delta.
        base (str): file or URL of the trunk's weights; default: what the delta recorded.
        merged (bool): for the stock config instead; ValueError where the method cannot be merged.
        strength (float): of the task, see `mix.weakened`.

    Returns:
        dict: `state_dict`, and `meta` with the classes.
    """
    tensors, meta = delta_file.read(path)
    state, metadata, rest = {}, {}, dict(tensors)
    for recorded in meta['trunks']:
        prefix = recorded['prefix']
        trunk = rebuilt(path, recorded, base, sum(value.numel() for value in tensors.values()))
        find_base(trunk, path, recorded, base)
        stock = {name: value for name, value in trunk.state_dict().items() if name in trunk.tuning.keys}
        mine = inside(tensors, prefix)
        trunk.tuning.method.expect(trunk, {**stock, **mine})            # fewer branches or entries than at its start
        if wrong := misfits(mine, delta(trunk), quantised_entries(trunk), inside(meta['packed'], prefix)):
            raise ValueError(f'the delta {path} does not fit the trunk that it describes ({"; ".join(wrong)})')
        mine = weakened(mine, trunk.tuning.method, stock, strength, path)
        trunk.load_state_dict({**stock, **mine})
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


def rebuilt(path, recorded, base, trained):
    """The tuned trunk that a delta records, with values still at random; ValueError where it names what is not here.

    Args:
        base (str): file or URL of the trunk's weights, or None for the recorded one.
        trained (int): how many values the delta brings. No more than these and those of the base are made room for.
    """
    if recorded['config'] is None:
        raise ValueError(f'{path} was saved from a model that was not built from a config, so its trunk cannot be '
                         'rebuilt; build and tune the model, then call e3va.load_delta')
    compat.patch_mmpretrain()
    values = max(LEAST, trained + size_of(path, recorded, base))
    try:
        with foreign.at_most(values):
            return tune(foreign.build_trunk(recorded['config']), recorded_method(recorded['method']),
                        config=foreign.trunk_config(recorded['config']))
    except Exception as error:                                          # whatever a method makes of odd options
        kind = '' if type(error) is ValueError else f'{type(error).__name__}: '
        raise ValueError(f'the model of the delta {path} cannot be rebuilt: {kind}{error}') from error
