"""Partial-k, a baseline of VPT's (Jia et al., ECCV 2022, arXiv 2203.12119) and E3VA's tables: the last blocks train."""
from ..registry import METHODS
from .base import Method, integer, last_blocks


@METHODS.register_module()
class Partial(Method):
    """The last `blocks` blocks in front of the last output, whole; nothing is backpropagated further.

    Downsampling between two of these blocks, and the norms in front of the neck, stay frozen, as in the counts of
    E3VA's tables (Partial-1: Swin-B 12,601,632, Swin-L 28,339,632). VPT trains a ViT's last norm too:
    `train_out_norms=True`.

    Args:
        blocks (int): how many.
        train_out_norms (bool): see `Method`.
    """

    mergeable = True
    linear = {}

    def __init__(self, blocks=1, train_out_norms=False):
        super().__init__(train_out_norms)
        self.blocks = integer('blocks', blocks)

    def apply(self, trunk, parts):
        for block in last_blocks(trunk, self.blocks):
            block.requires_grad_(True)
