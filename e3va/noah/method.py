"""NOAH: Neural Prompt Search (Zhang et al., TPAMI 2024, arXiv 2206.04673; public code ZhangYuanhan-AI/NOAH).

A supernet has in every block the prompts of VPT-deep, a LoRA on q, k and v (one A for the three) and an adapter behind
the MLP, each in its largest size. A subnet says how large each of them is in each block, 0 for none: the first so many
prompts, the first so many channels. The supernet trains a subnet drawn anew at every step; a search then finds the best
one within a budget of parameters, which is trained by itself, from the start.

A subnet is drawn as in the public code: for each of the three a depth, then for each of the first so many blocks a
size. Where we differ: there a block without prompts leaves those of the block before among the tokens, and prompts with
positions of their own stand in front of the first block, which replaces them; here prompts are of their block alone.
"""
import dataclasses

from torch import nn
from torch.nn import functional as F

from ..dmlora.method import DRAW, random_bits
from ..layers import Bottleneck, FollowedLinear, SlicedLinear
from ..layers.bottleneck import ACTIVATIONS
from ..methods.base import integer, linears
from ..methods.vpt import VPT, Prompts, attention_of
from ..registry import METHODS
from ..surgery import replace, unbind
from ..trunks import used

KINDS = ('prompt', 'lora', 'adapter')


class SizedPrompts(Prompts):
    """The first `size` of p prompts."""

    def __init__(self, count, like, bound, dropout):
        super().__init__(count, like, bound, dropout)
        self.size = count

    def cut(self, count):
        """Have the first `count` alone."""
        self.tokens, self.size = nn.Parameter(self.tokens.detach()[:count].clone()), count

    def count(self, size):
        """Parameters of the first `size`."""
        return size * self.tokens.shape[1]

    def forward(self, batch):
        return F.dropout(self.tokens[:self.size].expand(batch, -1, -1), self.dropout, self.training)


class SizedBottleneck(Bottleneck):
    """The first `size` of r channels of a bottleneck."""

    def __init__(self, width, rank, *options, **named):
        super().__init__(width, rank, *options, **named)
        self.size = rank

    def count(self, size):
        """Parameters of the first `size`, with all of the bias behind them."""
        biases = 0 if self.down_bias is None else size + len(self.up_bias)
        return size * (self.down.shape[1] + len(self.up)) + biases

    @property
    def undrawn(self):
        """What this step leaves alone (see `trunks.sampled`)."""
        return [] if self.size else list(self.parameters())

    def forward(self, x):
        bias = None if self.down_bias is None else self.down_bias[:self.size]
        inner = F.linear(x, self.down[:self.size], bias)
        if self.activation:
            inner = ACTIVATIONS[self.activation](inner)
        return F.linear(F.dropout(inner, self.dropout, self.training), self.up[:, :self.size], self.up_bias)


class SizedLoRA(SlicedLinear):
    """W + U D on all outputs of a layer, with the first `size` channels of U and D."""

    def __init__(self, old, rank, dropout):
        super().__init__(old)
        self.unit = SizedBottleneck(old.in_features, rank, None, dropout, False, 'lora_kaiming',
                                    out=old.out_features).to(old.weight)

    def deltas(self):
        return [self.unit.up[:, :self.unit.size] @ self.unit.down[:self.unit.size]]

    def forward(self, x):
        out = F.linear(x, self.weight, self.bias)
        return out + self.unit(x) if self.unit.size else out


class SizedAdapter(nn.Module):
    """x + U quick_gelu(D x + a) + b with the first `size` channels; x where there are none."""

    def __init__(self, width, rank, dropout):
        super().__init__()
        self.unit = SizedBottleneck(width, rank, 'quick_gelu', dropout, True, 'xavier')

    def forward(self, x):
        return x + self.unit(x) if self.unit.size else x


@METHODS.register_module()
class NOAH(VPT):
    """A subnet of prompts, LoRAs and adapters, or the supernet of them all; the trunk runs in eval mode.

    A supernet without a runner: call `set_sizes(trunk, drawn(space, step))` of `e3va.noah.method` before each
    step. It is for who searches: see tools/search.py, which writes the file of the subnet that it finds. Refused: what
    VPT refuses, timm's Eva, and torch's own attention (mmsegmentation's ViT), in which a LoRA would have no place.

    Args:
        subnet (dict): sizes of each block, dict(prompt=[10, 5, ...], lora=[...], adapter=[...]). Default: the supernet.
        sizes (sequence of int): among which a supernet draws; (1, 5, 10) in the published settings of VTAB-1k.
        depths (sequence of int): numbers of blocks, from the first on, that have something. Default: a quarter, half,
            three quarters and all of them (3, 6, 9 and 12 in the paper).
        dropout (float): of prompts and bottlenecks.
        train_out_norms (bool): see `Method`.
    """

    def __init__(self, subnet=None, sizes=(1, 5, 10), depths=None, dropout=0., train_out_norms=False):
        self.sizes = whole_numbers('sizes', sizes)
        self.depths = None if depths is None else whole_numbers('depths', depths)
        self.subnet = None if subnet is None else checked(subnet)
        super().__init__(max(1, *self.subnet['prompt']) if subnet else max(self.sizes), True, dropout, train_out_norms)
        if subnet is None:
            self.hook = 'e3va.NOAHHook'
        else:
            self.starts_at_trunk = not any(self.subnet['prompt'] + self.subnet['adapter'])

    def refusal(self, family):
        if family == 'eva':
            return 'its attention reads weights past their layers, and LoRAs in these leave no room for prompts'
        return super().refusal(family)

    def apply(self, trunk, parts):
        space = space_of(trunk, self)
        sizes = self.subnet or largest(space)
        if len(sizes['prompt']) != space.blocks:
            raise ValueError(f'the subnet has sizes for {len(sizes["prompt"])} blocks, and {type(trunk).__name__} has '
                             f'{space.blocks}: it was found for another trunk; search for this one (tools/search.py)')
        super().apply(trunk, parts)
        blocks = [block for stage in used(trunk) for block in stage]
        owner = {module: i for i, block in enumerate(blocks) for module in block.modules()}
        for i, block in enumerate(blocks):
            if sizes['prompt'][i]:
                block.prompts.cut(sizes['prompt'][i])
            else:
                del block.prompts
                unbind(attention_of(block), 'forward')
        for kind, roles in (('lora', ('q', 'k', 'v')), ('adapter', ('fc2',))):
            for name, old, _, _ in linears(trunk, parts, [role for role in roles if role in parts.ROLES]):
                size = integer(f'{kind} of block {owner[old]}', sizes[kind][owner[old]], 0, min(old.weight.shape))
                if size:
                    replace(trunk, name, SizedLoRA(old, size, self.dropout) if kind == 'lora' else
                            FollowedLinear(old, SizedAdapter(old.out_features, size, self.dropout)))

    def make(self, like, bound):
        return SizedPrompts(self.tokens, like, bound, self.dropout)


def whole_numbers(name, values):
    """An option of positive integers as a tuple, without repetitions; ValueError if it is empty."""
    if isinstance(values, (str, int)) or not len(values):
        raise ValueError(f'{name} takes positive integers, e.g. {name}=(1, 5, 10), not {values!r}')
    return tuple(dict.fromkeys(integer(name, value) for value in values))


def checked(subnet):
    """A subnet as lists of integers; ValueError for anything else."""
    if not isinstance(subnet, dict) or set(subnet) != set(KINDS):
        raise ValueError(f'subnet is a dict of sizes by block, dict(prompt=[10, 5], lora=[1, 0], adapter=[5, 10]), not '
                         f'{str(subnet):.100}')
    found = {kind: [integer(f'subnet[{kind!r}]', size, 0) for size in subnet[kind]] for kind in KINDS}
    lengths = {kind: len(sizes) for kind, sizes in found.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f'the lists of a subnet have one size a block each, and these have {lengths}')
    if not any(map(any, found.values())):
        raise ValueError('the subnet is empty: all of its sizes are 0')
    return found


# ---- what there is to draw from

@dataclasses.dataclass(frozen=True)
class Space:
    """Subnets of a supernet: sizes for the first `depth` of `blocks` blocks, 0 for the others, of each kind."""

    blocks: int
    sizes: tuple
    depths: tuple

    def draw(self, choose):
        """A subnet; `choose(options)` takes one of a tuple."""
        return {kind: self.sized(choose, choose(self.depths)) for kind in KINDS}

    def sized(self, choose, depth, given=()):
        """Sizes of a kind: `given` ones, then drawn ones up to the depth, then 0."""
        given = list(given)[:depth]
        return given + [choose(self.sizes) for _ in range(depth - len(given))] + [0] * (self.blocks - depth)


def space_of(trunk, method):
    """The `Space` of a trunk; ValueError for depths that it has not."""
    count = sum(map(len, used(trunk)))
    depths = method.depths or tuple(dict.fromkeys(max(1, count * i // 4) for i in range(1, 5)))
    if max(depths) > count:
        raise ValueError(f'depths={depths}: {type(trunk).__name__} has {count} blocks up to its last output')
    return Space(count, method.sizes, depths)


def largest(space):
    return dict.fromkeys(KINDS, [max(space.sizes)] * space.blocks)


def drawn(space, step, seed=0):
    """The subnet that a step trains, the same wherever seed and step are."""
    bits = iter(random_bits(seed, step, DRAW, len(KINDS) * (1 + space.blocks)))
    return space.draw(lambda options: options[int(next(bits)) % len(options)])


def parts_of(trunk):
    """[(kind, block, module)] of a supernet's prompts and bottlenecks, which have a `size`."""
    found, kinds = [], {SizedPrompts: 'prompt', SizedLoRA: 'lora', SizedAdapter: 'adapter'}
    for i, block in enumerate(block for stage in used(trunk) for block in stage):
        for module in block.modules():
            if type(module) in kinds:
                found.append((kinds[type(module)], i, getattr(module, 'unit', module)))
    return found


def set_sizes(trunk, subnet):
    """Let a supernet be one of its subnets."""
    for kind, i, module in parts_of(trunk):
        module.size = subnet[kind][i]
    trunk.tuning.hooked = True


def count(trunk, subnet):
    """Parameters of a subnet of a supernet."""
    return sum(module.count(subnet[kind][i]) for kind, i, module in parts_of(trunk) if subnet[kind][i])
