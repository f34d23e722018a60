"""Optimizer wrappers of methods that train a part of a tensor, their AMP twins, and the constructor of all."""
from .constructor import TunedOptimWrapperConstructor
from .dmlora import AmpDMLoRAOptimWrapper, DMLoRAOptimWrapper
from .gps import AmpGPSOptimWrapper, GPSOptimWrapper
from .pear import AmpPearOptimWrapper, PearOptimWrapper

__all__ = ['AmpDMLoRAOptimWrapper', 'AmpGPSOptimWrapper', 'AmpPearOptimWrapper', 'DMLoRAOptimWrapper',
           'GPSOptimWrapper', 'PearOptimWrapper', 'TunedOptimWrapperConstructor']
