"""E3VA (Yin et al., ACM MM 2024): a gradient highway beside a frozen trunk.

Where the paper's sentences are:

    3.3        adapters A(x) = U(GELU(D(x))) + x            adapter.Adapter
               the dual low-rank projections U and D        layers.low_rank
    Eq. 7, 8   the trunk's stream l and the highway e       side.stage, block by block; by hand in
                                                            tests/test_highway/test_formula.py
               the norms in front of the FPN                side.join
               downsampling as inherited, frozen or a copy  side.merge; e3va.E3VA, `downsampling`
    nothing passes the trunk: what backward keeps           segment.Highway, segment.Mode
    options, init, what trains                              e3va.E3VA
"""
from .e3va import E3VA
from .lst import LST

__all__ = ['E3VA', 'LST']
