"""Fixed: the trunk extracts features, only neck and heads train."""
from ..registry import METHODS
from .base import Method


@METHODS.register_module()
class Fixed(Method):
    """No parameter of the trunk trains (but its output norms with `train_out_norms=True`)."""

    mergeable = True
    linear = {}
    needs_family = False
    trunk_mode = 'eval'
