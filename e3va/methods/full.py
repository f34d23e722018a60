"""Full fine-tuning: the stock trunk as its own config has it (`frozen_stages` included)."""
from ..registry import METHODS
from .base import Method


@METHODS.register_module()
class Full(Method):
    """Every parameter of the trunk trains, as without e3va."""

    mergeable = True
    linear = {}
    needs_family = False

    def apply(self, trunk, parts):
        trunk.requires_grad_(True)
        if hasattr(trunk, '_freeze_stages') and getattr(trunk, 'frozen_stages', -1) >= 0:
            trunk._freeze_stages()
