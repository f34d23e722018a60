"""Pieces that two methods share."""
from .delta_linear import DeltaLinear
from .low_rank import DualLowRank

__all__ = ['DeltaLinear', 'DualLowRank']
