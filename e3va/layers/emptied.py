"""Positions of equal units: a position has its own unit, is served by another one's, or by none."""
from torch import nn


class Emptied(nn.Module):
    """Stands where a unit was taken out.

    Args:
        server (nn.Module): the unit that serves here now, a child of another position; None: none does.
    """

    def __init__(self, server=None):
        super().__init__()
        self.server = (server,)             # in a tuple it is no child: its parameters have one name, and one entry


def serving(module):
    """The unit at work at a position that holds `module`; None where there is none."""
    return module.server[0] if isinstance(module, Emptied) else module


def served(positions):
    """{name: unit at work} of those positions of an nn.ModuleDict that have one."""
    units = {name: serving(module) for name, module in positions.items()}
    return {name: unit for name, unit in units.items() if unit is not None}
