"""E3VA (Yin et al., ACM MM 2024): a gradient highway beside a frozen trunk."""
from .e3va import E3VA

__all__ = ['E3VA']
