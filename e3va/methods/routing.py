"""Which unit serves which position: the table that a pruned trunk carries, and how it comes into force."""
import torch
from torch import nn

from ..layers.emptied import Emptied
from ..surgery import replace
from ..trunks.walk import checkpoint_once

TABLE = 'pear'                              # name of the table among the trunk's children
KEY = 'e3va_pear'                           # of PearHook's entry in a checkpoint


class Routing(nn.Module):
    """Part of the state of a pruned trunk, and of its delta: with it a load rebuilds what was shared.

    Shapes, for n positions in the order of `Method.units`: `served_by` (n,), the position whose unit serves each one,
    which is itself where nothing was taken out, or -1, none; `scores` (n,), what the choice went by.
    """

    def __init__(self, served_by, scores):
        super().__init__()
        self.register_buffer('served_by', served_by.clone().to(torch.int32))
        self.register_buffer('scores', scores.clone().to(torch.float32))


def routing_of(trunk):
    """The trunk's `Routing`; None where nothing was pruned."""
    return getattr(trunk, TABLE, None)


def route(trunk, served_by, scores):
    """Take the units out of the positions that another one, or none, is to serve.

    Args:
        served_by (Tensor): (n,), see `Routing`.
        scores (Tensor): (n,).

    Returns:
        list of Parameter: those that are gone.
    """
    units = trunk.tuning.method.units(trunk)
    names, kept, gone = list(units), served_by.tolist(), []
    for i, (name, unit) in enumerate(units.items()):
        if kept[i] != i:
            gone += unit.parameters()
            replace(trunk, name, Emptied(units[names[kept[i]]] if kept[i] >= 0 else None))
    trunk.add_module(TABLE, Routing(served_by, scores).to(next(trunk.parameters()).device))
    parts = trunk.tuning.parts
    if parts and parts.ENTRY(trunk) not in trunk.__dict__:              # else the method goes by blocks already
        checkpoint_once(trunk, parts)
    if hasattr(trunk, '_params_init_info'):                             # mmengine's init_weights wants it of every one
        for module in trunk.modules():
            module._params_init_info = trunk._params_init_info
    return gone


def follow_routing(trunk, given):
    """Before a load: prune a trunk as the one was that the state dict `given` comes from; ValueError if it cannot be.
    """
    served_by, scores = given.get(f'{TABLE}.served_by'), given.get(f'{TABLE}.scores')
    present, units = routing_of(trunk), trunk.tuning.method.units(trunk)
    if served_by is None:
        emptied = tuple(f'{name}.' for name, unit in units.items() if isinstance(unit, Emptied))
        if any(name.startswith(emptied) for name in given):
            raise ValueError('the weights are of a trunk that was not pruned, and this one was: load them into one '
                             'that is built anew')
        return
    count = len(units)
    if served_by.shape != (count,) or scores is None or scores.shape != (count,):
        raise ValueError(f'the weights are of a pruned trunk of {served_by.numel()} positions, and this has {count}: '
                         'build it with the same method, roles and trunk')
    if present is None:
        check(served_by)
        route(trunk, served_by, scores)
    elif not torch.equal(present.served_by.cpu(), served_by.cpu().to(torch.int32)):
        raise ValueError('the weights are of a trunk that was pruned otherwise than this one: load them into one that '
                         'is built anew')


def table_of(state, prefix=''):
    """Of a state dict what says who serves whom in the trunk whose names begin with `prefix`, by the trunk's own names.
    """
    place = f'{prefix}{TABLE}.'
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(place)}


def check(served_by):
    """ValueError for a table that names what is not there."""
    table = served_by.tolist()
    if any(not -1 <= k < len(table) or (k >= 0 and table[k] != k) for k in table):
        raise ValueError(f'the table of who serves whom is damaged: {table}')
