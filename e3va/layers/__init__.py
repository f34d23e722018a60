"""Pieces that two methods share."""
from .adopted import AdoptedLinear
from .delta_linear import DeltaLinear
from .followed_linear import FollowedLinear
from .half_linear import HalfLinear
from .low_rank import DualLowRank

__all__ = ['AdoptedLinear', 'DeltaLinear', 'DualLowRank', 'FollowedLinear', 'HalfLinear']
