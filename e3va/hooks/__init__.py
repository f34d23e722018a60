"""When things happen during a run; what happens is a function that a hook calls."""
from .delta import DeltaHook
from .dmlora import DMLoRAHook
from .gps import GPSHook
from .report import ReportHook
from .rng_state import RngStateHook

__all__ = ['DMLoRAHook', 'DeltaHook', 'GPSHook', 'ReportHook', 'RngStateHook']
