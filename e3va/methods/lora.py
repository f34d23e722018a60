"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): W + (alpha / r) B A on chosen linears, by default q and v.

With `bits` Bi-LoRA (Jie et al., ICCV 2023, see `layers.quantised`): A and B in 1, 2 or 4 bits, B not zero at the start.
"""
from torch import nn
from torch.nn import functional as F

from ..layers import Bottleneck, DeltaLinear, SlicedLinear, served
from ..layers.quantised import BITS
from ..registry import METHODS
from ..surgery import replace
from .base import Method, choice, integer, linears, number, role_names


class LoRALinear(SlicedLinear):
    """W + scale * B A on some of the `of` equal slices of the outputs (Eq. 3). B = 0, so training starts at the trunk.

    A fused q, k, v layer has three slices; each adapted slice has a pair of factors of its own, a unit that another
    position may share. A slice whose pair is taken out is the stock layer's.

    Shapes: `pairs` {slice: unit with `down` A (r, in), `up` B (out / of, r)}; x (..., in).
    """

    def __init__(self, old, rank, scale, slices=(0,), of=1, bits=32, dropout=0.):
        DeltaLinear.__init__(self, old)
        self.of, self.scale = of, scale
        # A as the authors: kaiming with a = sqrt(5).
        self.pairs = nn.ModuleDict({
            str(part): Bottleneck(old.in_features, rank, None, dropout, False, 'lora_kaiming', scale, bits, self.width)
            for part in slices}).to(old.weight)

    @property
    def slices(self):
        return tuple(int(part) for part in served(self.pairs))

    def deltas(self):
        return [self.scale * pair.value('up') @ pair.value('down') for pair in served(self.pairs).values()]

    def forward(self, x):
        """The same by thin products: no tensor of the weight's size is made."""
        out, pairs = F.linear(x, self.weight, self.bias), served(self.pairs)
        return self.add(out, [pair(x) for pair in pairs.values()]) if pairs else out


@METHODS.register_module()
class LoRA(Method):
    """Low-rank additions to linears of the attention or the MLP.

    Args:
        rank (int): r. 8 in Pear, GPS and DMLoRA (ViT-B: 294,912 parameters); 64 in E3VA's tables.
        alpha (float): the addition is scaled by alpha / rank. Default: `rank`, i.e. a scale of 1.
        roles (sequence of str): the linears that are adapted: 'q', 'k', 'v', 'proj', 'fc1', 'fc2'.
        bits (int): of each entry of the factors: 1 (Bi-LoRA), 2, 4, or 32, floats. A saved delta has these bits: rank
            32 in 1 bit on ViT-B is 147,840 bytes.
        dropout (float): of the r channels between the factors. Default: 0.1 with fewer than 32 bits (Bi-LoRA), else 0.
        train_out_norms (bool): see `Method`.
    """

    mergeable = True
    unit = Bottleneck

    def __init__(self, rank=8, alpha=None, roles=('q', 'v'), bits=32, dropout=None, train_out_norms=False):
        super().__init__(train_out_norms)
        self.rank = integer('rank', rank)
        self.alpha = rank if alpha is None else alpha
        self.roles = role_names(roles)
        self.bits = choice('bits', integer('bits', bits), BITS)
        self.dropout = number('dropout', (0. if bits == 32 else 0.1) if dropout is None else dropout, 0, 1)
        self.starts_at_trunk = bits == 32

    def apply(self, trunk, parts):
        for name, old, slices, of in linears(trunk, parts, self.roles):
            integer('rank', self.rank, high=min(old.in_features, old.out_features // of))
            replace(trunk, name, LoRALinear(old, self.rank, self.alpha / self.rank, slices, of, self.bits,
                                            self.dropout))
