"""E3VAMix (ours): LoRA that learns from a share of each batch, the trunk's other images being E3VA's case.

    h = W x + (alpha / r) B A x for every image;   dA and dB: 1/s times those of the share s of a batch that is drawn

For the images that are not drawn nothing is kept in the trunk and nothing is backpropagated through it; neck and heads
learn from all. What is kept and the time of backward shrink to a share of LoRA's; the gradient is right in the mean
(`trunks.sampled`). For those that are drawn the trunk's GELUs and the adapted linears keep 8 bits an entry
(`layers.gelu`, `layers.packed`), which pays for adapting what both branches of a block write, too: `proj` and `fc2`.
`configs/e3va/README.md` says what it was measured to be worth, and what else was tried.
"""
from ..registry import METHODS
from .base import known_roles
from .lora import LoRA

ROLES = 'q', 'v', 'proj', 'fc2'


@METHODS.register_module()
class E3VAMix(LoRA):
    """LoRA under `backward=0.25` and `gelu='int8'`, which are options as of `tune`.

    Args:
        rank (int), alpha (float), bits (int), dropout (float), train_out_norms (bool), targets (str or sequence of
            str), blocks (int): see `LoRA`.
        roles (sequence of str): as of `LoRA`. Default: of 'q', 'v', 'proj' and 'fc2' those that the trunk has.
        inputs (str): as of `LoRA`, 'int8' by default.
    """

    backward, gelu = 0.25, 'int8'

    def __init__(self, rank=8, alpha=None, roles=None, bits=32, dropout=None, train_out_norms=False, targets=None,
                 blocks=None, inputs='int8'):
        super().__init__(rank, alpha, roles, bits, dropout, train_out_norms, targets, blocks, inputs)
        self.usual_roles = roles is None

    def apply(self, trunk, parts):
        if self.usual_roles and parts:
            named = [name for name, module in trunk.named_modules() if isinstance(module, self.adapted)]
            known = known_roles(parts, named)
            self.roles = tuple(role for role in ROLES if role in known) or self.roles
        super().apply(trunk, parts)
