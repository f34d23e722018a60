"""Optimizer wrappers of methods that train a part of a tensor, their AMP twins, and the constructor of all."""
from .constructor import TunedOptimWrapperConstructor

__all__ = ['TunedOptimWrapperConstructor']
