"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): W + (alpha / r) B A on chosen linears, by default q and v.

On convolutions A is one of the layer's own size to r channels and B one of 1x1, as in HF PEFT and in LoCon; there with
groups A has the layer's groups too, where PEFT's does not, so that the sum is a kernel of the layer's and merges.

With `bits` Bi-LoRA (Jie et al., ICCV 2023, see `layers.quantised`): A and B in 1, 2 or 4 bits, B not zero at the start.
"""
from torch import nn
from torch.nn import functional as F

from ..layers import Bottleneck, DeltaConv2d, DeltaLinear, SlicedLinear, served
from ..layers.packed import WAYS, linear_of
from ..layers.quantised import BITS
from ..layers.sparse import take
from ..layers.summed import pays, summed
from ..registry import METHODS
from ..surgery import replace
from .base import Method, choice, integer, last_blocks, layers, number, places


class LoRALinear(SlicedLinear):
    """W + scale * B A on some of the `of` equal slices of the outputs (Eq. 3). B = 0, so training starts at the trunk.

    A fused q, k, v layer has three slices; each adapted slice has a pair of factors of its own, a unit that another
    position may share. A slice whose pair is taken out is the stock layer's.

    Shapes: `pairs` {slice: unit with `down` A (r, in), `up` B (out / of, r)}; x (..., in).
    """

    def __init__(self, old, rank, scale, slices=(0,), of=1, bits=32, dropout=0., inputs='exact'):
        DeltaLinear.__init__(self, old)
        self.of, self.scale, self.inputs = of, scale, inputs
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
        """The same by thin products, or by the sum of the weights where that is less work."""
        pairs = served(self.pairs)
        if not pairs:
            return F.linear(x, self.weight, self.bias)
        frozen = not (self.weight.requires_grad or self.bias is not None and self.bias.requires_grad)
        drops = self.training and any(pair.dropout for pair in pairs.values())
        if frozen and not drops and pays(x, self.weight, self.width):
            factors = [pair.value(name) for name in ('down', 'up') for pair in pairs.values()]
            return summed(x, self.weight, self.bias, self.inputs, self.scale, self.of, self.slices, *factors)
        linear = linear_of(x, self.inputs)
        return self.add(F.linear(x, self.weight, self.bias), [pair(x, linear) for pair in pairs.values()])


class LoRAConv2d(DeltaConv2d):
    """W + scale * B A of a convolution; see `DeltaConv2d`.

    Shapes: `pairs` {'0': unit with `down` A (r, in / groups * h * w), `up` B (out, r / groups)}; x (B, in, H, W).
    """

    slices, of = (0,), 1                                                # as of `LoRALinear`: the whole layer

    def __init__(self, old, rank, scale, bits=32, dropout=0.):
        super().__init__(old)
        self.scale = scale
        self.pairs = nn.ModuleDict({'0': Bottleneck(
            old.weight[0].numel(), rank, None, dropout, False, 'lora_kaiming', scale, bits, old.out_channels,
            old.groups)}).to(old.weight)

    def factors(self):
        return [(pair.value('down'), self.scale * pair.value('up'), pair.dropout)
                for pair in served(self.pairs).values()]


class LoRAAttention(nn.MultiheadAttention):
    """The same on the fused q, k, v weight of torch's attention, which torch reads as a whole: here the sum is made.

    So there is no dropout between the factors.
    """

    of = 3
    slices, deltas, delta = LoRALinear.slices, LoRALinear.deltas, SlicedLinear.delta
    weight = property(lambda self: self.in_proj_weight)
    width = in_features = property(lambda self: self.embed_dim)

    def __init__(self, old, rank, scale, slices, bits=32):
        nn.Module.__init__(self)
        take(self, old)
        self.plain, self.scale = type(old), scale
        self.pairs = nn.ModuleDict({
            str(part): Bottleneck(old.embed_dim, rank, None, 0., False, 'lora_kaiming', scale, bits)
            for part in slices}).to(old.in_proj_weight)

    def forward(self, *inputs, **options):
        if not self.slices:
            return super().forward(*inputs, **options)
        vars(self)['in_proj_weight'] = self.weight + self.delta()       # found before the parameter of this name
        try:
            return super().forward(*inputs, **options)
        finally:
            del vars(self)['in_proj_weight']

    def merged(self):
        """Torch's own, with the whole weight."""
        layer = self.plain.__new__(self.plain)
        take(layer, self)
        del layer.pairs, layer.plain, layer.scale
        layer.in_proj_weight = nn.Parameter((self.weight + self.delta()).detach(), self.weight.requires_grad)
        return layer


@METHODS.register_module()
class LoRA(Method):
    """Low-rank additions to linears of the attention or the MLP, or to any linears and convolutions.

    Args:
        rank (int): r. 8 in Pear, GPS and DMLoRA (ViT-B: 294,912 parameters); 64 in E3VA's tables.
        alpha (float): the addition is scaled by alpha / rank. Default: `rank`, i.e. a scale of 1.
        roles (sequence of str): the linears that are adapted: 'q', 'k', 'v', 'proj', 'fc1', 'fc2'; of torch's own
            attention q, k and v alone, without dropout. Default: q and v, as in the paper, in a trunk whose family is
            known; in any other all linear layers but the classifier's, or where there are none all convolutions
            without groups, which is said.
        targets (str or sequence of str): the linears and convolutions that are adapted, in any module, as HF PEFT's
            `target_modules`: 'all-linear', endings of names, or one regular expression over full names. A fused q, k, v
            layer is adapted as a whole, as there, and a rank may be above the layer's size.
        bits (int): of each entry of the factors: 1 (Bi-LoRA), 2, 4, or 32, floats. A saved delta has these bits: rank
            32 in 1 bit on ViT-B is 147,840 bytes.
        dropout (float): of the r channels between the factors. Default: 0.1 with fewer than 32 bits (Bi-LoRA), else 0.
        inputs (str): 'int8' lets an adapted linear keep its input in 8 bits for the gradient of A, which is approximate
            then (`layers.packed`); 'exact' as it is.
        blocks (int): the last so many blocks in front of the last output alone are adapted, and nothing is
            backpropagated further, as with `Partial`. Default: all.
        train_out_norms (bool): see `Method`.
    """

    mergeable = True
    linear = {'up': 0.}
    needs_family = False
    adapted = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)             # the last by roles alone
    unit = Bottleneck
    inputs = 'exact'

    def __init__(self, rank=8, alpha=None, roles=None, bits=32, dropout=None, train_out_norms=False, targets=None,
                 blocks=None, inputs='exact'):
        super().__init__(train_out_norms)
        self.rank = integer('rank', rank)
        self.blocks = blocks if blocks is None else integer('blocks', blocks)
        self.alpha = rank if alpha is None else number('alpha', alpha)
        self.roles, self.targets = places(roles, targets)
        self.bits = choice('bits', integer('bits', bits), BITS)
        self.dropout = number('dropout', (0. if bits == 32 else 0.1) if dropout is None else dropout, 0, 1)
        if choice('inputs', inputs, WAYS) != 'exact':
            self.inputs = inputs
        self.config.pop('inputs', None)                                 # no delta depends on it
        self.starts_at_trunk = bits == 32
        self.linear = self.linear if bits == 32 else None               # codes have no shares

    def adapts(self, module):
        return isinstance(module, (nn.Linear, nn.Conv2d))

    def apply(self, trunk, parts):
        found = self.within(trunk, parts, layers(trunk, parts, self))
        if self.inputs != 'exact' and not any(isinstance(old, nn.Linear) for _, old, *_ in found):
            raise ValueError(f'inputs={self.inputs!r} is for linears, and of {type(trunk).__name__} '
                             f'{type(found[0][1]).__name__} layers alone are adapted: leave it out')
        for name, old, slices, of in found:
            replace(trunk, name, self.make(old, rank_for(self, trunk, name, old, of), slices, of))

    def within(self, trunk, parts, found):
        """Of what `layers` found that in the last `blocks` blocks."""
        if self.blocks is None:
            return found
        if parts is None:
            raise ValueError(f'blocks={self.blocks}: e3va does not know the blocks of {type(trunk).__name__}; name '
                             'layers of the last ones by targets=')
        inside = {module for block in last_blocks(trunk, self.blocks) for module in block.modules()}
        chosen = [one for one in found if one[1] in inside]
        if not chosen:
            raise ValueError(f'blocks={self.blocks}: the layers that are named, e.g. {found[0][0]}, lie outside the '
                             f'last {self.blocks} blocks of {type(trunk).__name__}: take more blocks, or other layers')
        return chosen

    def make(self, old, rank, slices, of):
        scale = self.alpha / self.rank
        if isinstance(old, nn.Conv2d):
            return LoRAConv2d(old, rank, scale, self.bits, self.dropout)
        if isinstance(old, nn.Linear):
            return LoRALinear(old, rank, scale, slices, of, self.bits, self.dropout, self.inputs)
        if self.dropout:
            raise ValueError(f"LoRA(dropout={self.dropout}) is between the factors, and torch's attention takes their "
                             "product alone: give dropout=0")
        return LoRAAttention(old, rank, scale, slices, self.bits)


def rank_for(method, trunk, name, old, of=1):
    """The method's rank, if a layer can have it; ValueError else. By `targets` it may be above the layer's size."""
    groups = getattr(old, 'groups', 1)
    if method.rank % groups:
        raise ValueError(f'rank={method.rank}: {name} of {type(trunk).__name__} is a convolution of {groups} groups, '
                         'and the rank must be a multiple of that; give such a rank, or targets= without it')
    if trunk.tuning.parts and method.targets is None:
        weight = old.in_proj_weight if isinstance(old, nn.MultiheadAttention) else old.weight
        integer('rank', method.rank, high=min(weight[0].numel(), len(weight) // of))
    return method.rank
