"""Optimizer wrappers of methods that train a part of a tensor, their AMP twins, and the constructor of all."""
from ..dmlora.optim import AmpDMLoRAOptimWrapper, DMLoRAOptimWrapper
from ..gps.optim import AmpGPSOptimWrapper, GPSOptimWrapper
from ..pear.optim import AmpPearOptimWrapper, PearOptimWrapper
from ..train.constructor import TunedOptimWrapperConstructor

__all__ = ['AmpDMLoRAOptimWrapper', 'AmpGPSOptimWrapper', 'AmpPearOptimWrapper', 'DMLoRAOptimWrapper',
           'GPSOptimWrapper', 'PearOptimWrapper', 'TunedOptimWrapperConstructor']
