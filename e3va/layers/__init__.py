"""Pieces that two methods share."""
from .adopted import AdoptedLinear
from .bottleneck import Bottleneck
from .delta_linear import DeltaLinear
from .followed_linear import FollowedLinear
from .half_linear import HalfLinear
from .int8_linear import Int8Linear
from .low_rank import DualLowRank
from .sliced_linear import SlicedLinear
from .sparse import SparseAttention, SparseConv2d, SparseLinear, SparseWeight

__all__ = ['AdoptedLinear', 'Bottleneck', 'DeltaLinear', 'DualLowRank', 'FollowedLinear', 'HalfLinear', 'Int8Linear',
           'SlicedLinear', 'SparseAttention', 'SparseConv2d', 'SparseLinear', 'SparseWeight']
