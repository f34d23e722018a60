"""Norm-Tuning, a baseline of E3VA's tables: of the trunk, only the norm layers train."""
from ..registry import METHODS
from .base import Method, norms


@METHODS.register_module()
class NormTuning(Method):
    """Scale and shift of every norm layer: in the blocks, behind the patch embedding, in front of the neck.

    Norms are found by their class, as ViTs of OpenMMLab call them `ln1` and `ln2`. On Swin that gives the counts of
    E3VA's tables, 59,392 (B) and 89,088 (L).

    Args:
        train_out_norms (bool): see `Method`; they train anyway.
    """

    mergeable = True
    linear = {}
    needs_family = False

    def apply(self, trunk, parts):
        for norm in norms(trunk).values():
            norm.requires_grad_(True)
