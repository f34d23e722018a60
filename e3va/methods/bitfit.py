"""BitFit (Ben Zaken et al., ACL 2022, arXiv 2106.10199): of the trunk, only the biases train."""
from ..registry import METHODS
from .base import Method, idle_places


@METHODS.register_module()
class BitFit(Method):
    """Every parameter whose name contains 'bias': those of linears, convolutions and norms.

    Swin's relative position bias tables are among them by that rule, as in the counts of E3VA's tables (Swin-B 201,656,
    Swin-L 302,484; ViT-B 102,912).

    Args:
        train_out_norms (bool): see `Method`; their biases train anyway.
    """

    mergeable = True
    linear = {}
    needs_family = False

    def apply(self, trunk, parts):
        idle = idle_places(trunk)
        for name, parameter in trunk.named_parameters():
            if 'bias' in name and not name.startswith(idle):
                parameter.requires_grad_(True)
