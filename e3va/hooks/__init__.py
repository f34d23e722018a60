"""When things happen during a run; what happens is a function that a hook calls."""
from .delta import DeltaHook
from .report import ReportHook
from .rng_state import RngStateHook

__all__ = ['DeltaHook', 'ReportHook', 'RngStateHook']
