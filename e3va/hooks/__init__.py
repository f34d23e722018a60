"""When things happen during a run; what happens is a function that a hook calls."""
from ..delta.hook import DeltaHook
from ..dmlora.hook import DMLoRAHook
from ..gps.hook import GPSHook
from ..pear.hook import PearHook, VanillaPruning
from ..train.checkpoint import CheckpointHook
from ..train.report import ReportHook
from ..train.rng_state import RngStateHook

__all__ = ['CheckpointHook', 'DMLoRAHook', 'DeltaHook', 'GPSHook', 'PearHook', 'ReportHook', 'RngStateHook',
           'VanillaPruning']
