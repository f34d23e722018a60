"""When things happen during a run; what happens is a function that a hook calls."""
from .checkpoint import CheckpointHook
from .delta import DeltaHook
from .dmlora import DMLoRAHook
from .gps import GPSHook
from .pear import PearHook, VanillaPruning
from .report import ReportHook
from .rng_state import RngStateHook

__all__ = ['CheckpointHook', 'DMLoRAHook', 'DeltaHook', 'GPSHook', 'PearHook', 'ReportHook', 'RngStateHook',
           'VanillaPruning']
