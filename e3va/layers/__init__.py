"""Pieces that two methods share."""
from .adopted import AdoptedConv2d, AdoptedLinear
from .bottleneck import Bottleneck
from .delta_conv import DeltaConv2d
from .delta_linear import DeltaLinear
from .emptied import Emptied, served, serving
from .followed_linear import FollowedLinear
from .half_linear import HalfLinear
from .int8_linear import Int8Linear
from .low_rank import DualLowRank
from .quantised import Quantised
from .quantised_linear import QuantisedLinear
from .sliced_linear import SlicedLinear
from .sparse import SparseAttention, SparseConv2d, SparseLinear, SparseWeight

__all__ = ['AdoptedConv2d', 'AdoptedLinear', 'Bottleneck', 'DeltaConv2d', 'DeltaLinear', 'DualLowRank', 'Emptied',
           'FollowedLinear', 'HalfLinear', 'Int8Linear', 'Quantised', 'QuantisedLinear', 'SlicedLinear',
           'SparseAttention', 'SparseConv2d', 'SparseLinear', 'SparseWeight', 'served', 'serving']
