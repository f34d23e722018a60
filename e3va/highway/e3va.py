"""E3VA: Parameter-efficient is not Sufficient (Yin et al., ACM MM 2024, doi 10.1145/3664647.3680940).

Beside the frozen trunk runs a second stream e: e_0 = l_0, and each block adds what its two adapters make of the
outputs of the block's attention and MLP (equation 8). Between stages e passes through the trunk's own frozen
downsampling. Every trained parameter lies on this stream, so nothing is backpropagated through the trunk.
"""
from functools import partial

from torch import nn

from ..layers import DualLowRank, HalfLinear, Int8Linear
from ..methods.base import Method, choice, integer
from ..registry import METHODS
from ..surgery import replace
from ..trunks import used
from ..trunks.walk import reroute
from .adapter import Adapter, Dense
from .segment import MODES
from .side import Side, highway

WEIGHTS = dict(bf16=HalfLinear, int8=Int8Linear)
PAPER = dict(init='random', trunk_mode='config')


@METHODS.register_module()
class E3VA(Method):
    """A parallel highway of low-rank adapters; ranks 8, 16, 32 are the paper's E3VA, E3VA+ and E3VA++.

    Args:
        rank (int): alpha of the paper, the rank of each of the two branches of a projection.
        adapter (str): 'low_rank', or 'standard' for whole matrices (Table 5).
        mid (int): bottleneck width. Default: half the width; 32 for standard adapters, as in Table 5.
        arrangement (str): 'parallel', or 'stacked': the first adapter's output enters the second (Fig. 3, Table 5).
        downsampling (str): 'inherited': the trunk's own modules, frozen; 'trainable': copies of them (Table 6).
        skip (bool): the adapter's own `+ x` of section 3.3; with it the stream is the trunk's plus corrections.
        join (str): what the trunk gives out: 'replace' norm(e), 'sum' norm(l + e), 'post' norm(l) + norm(e).
        init (str): 'zero_up': the last up factor and bias are zero, so the tuned model starts as the stock model;
            'random': every factor kaiming, as in the authors' earlier code.
        tap (str): an adapter reads a branch 'before' or 'after' its DropPath (the same while the trunk is in eval).
        trunk_mode (str): 'eval': no dropout and DropPath in the trunk; 'config': as the trunk's config says.
        mode (str): what is kept for backward. 'exact': the adapters' inputs; 'bf16', 'int8': these in fewer bits;
            'stream': only what lies between stages, the frozen blocks run again; 'stream_bf16': that in fewer bits.
        attention (str): 'stock', or 'fused': torch's fused kernel in the blocks of OpenMMLab's Swins, equal up to
            rounding (the other trunks have it anyway).
        trunk_weights (str): 'stock', or the frozen linear layers of the blocks in fewer bits: 'bf16' (half the bytes of
            fp32, products in bfloat16) or 'int8' (a quarter, by torchao). What the highway inherits, the downsampling,
            stays as it is.
        trunk_compile (bool): compile attention and MLP of each frozen block (`torch.compile`).
        preset (str): 'paper' sets what the authors' earlier code does: init='random', trunk_mode='config'.
        train_out_norms (bool): train the norms before the FPN (Table 6: trained).
    """

    unit = Adapter
    backpropagates = reaches_input = False

    def __init__(self, rank=8, adapter='low_rank', mid=None, arrangement='parallel', downsampling='inherited',
                 skip=True, join='replace', init=None, tap='before', trunk_mode=None, mode='exact',
                 attention='stock', trunk_weights='stock', trunk_compile=False, preset=None, train_out_norms=True):
        super().__init__(train_out_norms)
        given = PAPER if choice('preset', preset, (None, 'paper')) else {}
        self.rank = integer('rank', rank)
        self.adapter = choice('adapter', adapter, ('low_rank', 'standard'))
        self.mid = mid if mid is None else integer('mid', mid)
        self.arrangement = choice('arrangement', arrangement, ('parallel', 'stacked'))
        self.downsampling = choice('downsampling', downsampling, ('inherited', 'trainable'))
        self.skip = skip
        self.join = choice('join', join, ('replace', 'sum', 'post'))
        self.init = choice('init', init or given.get('init', 'zero_up'), ('zero_up', 'random'))
        self.tap = choice('tap', tap, ('before', 'after'))
        self.mode = choice('mode', mode, tuple(MODES))
        self.attention = choice('attention', attention, ('stock', 'fused'))
        self.trunk_weights = choice('trunk_weights', trunk_weights, ('stock', *WEIGHTS))
        self.trunk_compile = trunk_compile
        self.trunk_mode = choice('trunk_mode', trunk_mode or given.get('trunk_mode', 'eval'), ('eval', 'config'))
        self.starts_at_trunk = (self.skip and self.join == 'replace' and self.init == 'zero_up'
                                and trunk_weights == 'stock')

    def apply(self, trunk, parts):
        adapters = [[nn.ModuleDict({name: self.make(parts.like(block)) for name in parts.names(block)})
                     for block in blocks] for blocks in used(trunk)]
        if parts.INSIDE and self.downsampling == 'trainable':
            raise ValueError(f"E3VA(downsampling='trainable') copies what lies between stages, and in a "
                             f"{type(trunk).__name__} blocks merge inside: take 'inherited'")
        last, end = parts.taps(trunk)[-1]
        merges = {i: merge for i, merge in parts.merges(trunk).items()
                  if self.downsampling == 'trainable' and (i < last or (i == last and end == 'merged'))}
        trunk.e3va = Side(adapters, merges, self.arrangement, self.skip, self.join, self.tap, self.mode)
        reroute(trunk, parts, highway)
        self.quicken(trunk, parts)

    def quicken(self, trunk, parts):
        """What only a trunk without gradient can do."""
        if self.attention == 'fused' and hasattr(parts, 'fuse_attention'):
            parts.fuse_attention(trunk)
        blocks = [block for stage in parts.stages(trunk) for block in stage]
        if self.trunk_weights in WEIGHTS:
            layers = [(block, name, layer) for block in blocks for name, layer in block.named_modules()
                      if isinstance(layer, nn.Linear) and not name.endswith('out_proj')]    # torch's attention reads it
            if not layers:
                raise ValueError(f'E3VA(trunk_weights={self.trunk_weights!r}) rounds linear layers, and the blocks of '
                                 f"this {type(trunk).__name__} have none: leave it at 'stock'")
            for block, name, layer in layers:
                replace(block, name, WEIGHTS[self.trunk_weights](layer))
        for block in blocks:
            if self.trunk_compile:
                for name in ('attn', 'ffn', 'mlp'):
                    if hasattr(block, name):
                        getattr(block, name).compile()

    def make(self, like):
        """An adapter of the width, type and device of `like`, (C,)."""
        width = like.numel()
        mid = self.mid or (width // 2 if self.adapter == 'low_rank' else 32)
        if self.adapter == 'low_rank':
            integer('rank', self.rank, high=mid)
        made = Adapter(width, mid, partial(DualLowRank, rank=self.rank) if self.adapter == 'low_rank' else Dense)
        if self.init == 'zero_up':
            made.up.zero()
        return made.to(like)

    def units(self, trunk):
        """Stacked adapters are none: the second reads what the first gives out, and cannot do without it."""
        return super().units(trunk) if self.arrangement == 'parallel' else {}

    def place(self, trunk, position):
        _, _, stage, block, role = position.split('.')
        return f'{stage}.{block}' if len(trunk.e3va.stages) > 1 else block, role

    def loaded(self, trunk, missing):
        """Trainable copies of the downsampling start from the trunk's values, whenever these arrive."""
        for i, copied in trunk.e3va.merges.items():
            source = trunk.tuning.parts.merges(trunk)[int(i)].state_dict()
            copied.load_state_dict({name: value for name, value in source.items()
                                    if f'e3va.merges.{i}.{name}' in missing}, strict=False)
