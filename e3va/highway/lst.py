"""LST: Ladder Side-Tuning (Sung et al., NeurIPS 2022, arXiv 2206.06522; code ylsung/Ladder-Side-Tuning).

Beside the frozen trunk runs a side network of the same depth and 1/r of the width, which reads each block's output:

    s_i = B_i(g_i s_{i-1} + (1 - g_i) D_i l_i),   g = sigmoid(a / T),   s_0 = D_0 l_0

B_i is a transformer block of width C / r, whose weights start as the trunk block's, pruned; D_i a projection, a_i a
scalar, T 0.1. What the trunk gives out is joined with U LN(s). Nothing is backpropagated through the trunk.

Where we differ: importance in the pruning is the L1 norm of rows, without data (the code also takes Fisher's
information, which needs some). The output is l + U LN(s) with U = 0, so that training starts at the trunk;
`join='gate'` is the code's g l + (1 - g) U LN(s).

The paper is about language models, and E3VA's calls LST inapplicable to Swin, for want of one width. As those who came
after it do, a trunk of stages has a side network of stages here: each has its own width, C_i / r; between two of them
the side's map is averaged down to the trunk's next grid and projected. On such maps a side block's tokens attend to the
map's means over at most 7 x 7 cells, not to windows.
"""
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ..methods.base import Method, choice, integer, is_norm, linears
from ..methods.mona import Mona
from ..registry import METHODS
from ..trunks import used
from ..trunks.walk import refuse_options, reroute, walk
from .adapter import Dense

CELLS = 7                                                               # along a side of a map that is attended to
TEMPERATURE = 0.1


class Norm(nn.Module):
    """A layer norm, by a name that no `init_weights` of a trunk looks for."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias)


class Gate(nn.Module):
    """g a + (1 - g) b with g = sigmoid(alpha / T), half and half at first."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, a, b):
        gate = torch.sigmoid(self.alpha / TEMPERATURE)
        return gate * a + (1 - gate) * b


class SideBlock(nn.Module):
    """A pre-norm transformer block on tokens in front of a map and the map itself, (B, P, w) and (B, h, w, w).

    Args:
        width (int): w.
        mid (int): channels inside its MLP.
        heads (int): of its attention.
        cells (int): the map's means over so many cells along a side are attended to; None: all tokens.
    """

    def __init__(self, width, mid, heads, cells):
        super().__init__()
        self.heads, self.cells = heads, cells
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.qkv, self.proj = Dense(width, 3 * width), Dense(width, width)
        self.fc1, self.fc2 = Dense(width, mid), Dense(mid, width)

    def forward(self, prefix, patches):
        grid = patches.shape[1:3]
        x = torch.cat([prefix, patches.flatten(1, 2)], dim=1)
        x = x + self.attend(self.norm1(x), prefix.shape[1], grid)
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x[:, :prefix.shape[1]], x[:, prefix.shape[1]:].unflatten(1, grid)

    def attend(self, x, count, grid):
        seen = x
        if self.cells and max(grid) > self.cells:
            means = averaged(x[:, count:].unflatten(1, grid), tuple(min(side, self.cells) for side in grid))
            seen = torch.cat([x[:, :count], means.flatten(1, 2)], dim=1)
        width = x.shape[-1]
        if seen is x:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            q = F.linear(x, self.qkv.s[:width], self.qkv.bias[:width])
            k, v = F.linear(seen, self.qkv.s[width:], self.qkv.bias[width:]).chunk(2, dim=-1)
        q, k, v = (tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tokens in (q, k, v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def averaged(patches, grid):
    """Means of a map (B, h, w, C) over the cells of another grid."""
    return F.adaptive_avg_pool2d(patches.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)


class Ladder(nn.Module):
    """The side network; it lies in the trunk as its child `lst`.

    Children: `first` D_0; `stages`, for each stage {block: rung of `down`, `gate`, `block`}; `merges`, for each stage
    but the first a projection; `ups`, for each place that the trunk gives out its `norm`, `up` and, if any, `gate`.
    """

    def __init__(self, first, stages, merges, ups):
        super().__init__()
        self.first = first
        self.stages = nn.ModuleList(nn.ModuleDict(stage) for stage in stages)
        self.merges = nn.ModuleDict(merges)
        self.ups = nn.ModuleDict(ups)


@METHODS.register_module()
class LST(Method):
    """A ladder side network; ViT-B with r = 8: 2,376,492 parameters.

    Args:
        reduction (int): r, by which the side network is narrower. 8 in the paper.
        without (sequence of int): blocks that have no rung, counted from 0 through all stages. The paper leaves some
            out.
        init (str): 'pruned': a side block starts as the trunk's, with its most important channels; 'random'.
        join (str): 'add': l + U LN(s) with U = 0; 'gate': g l + (1 - g) U LN(s) with U as torch has it, as in the code.
        train_out_norms (bool): see `Method`.
    """

    backpropagates = False
    trunk_mode = 'eval'
    refused = {family: why.replace('convolve', 'average') for family, why in Mona.refused.items()}

    def __init__(self, reduction=8, without=(), init='pruned', join='add', train_out_norms=True):
        super().__init__(train_out_norms)
        self.reduction = integer('reduction', reduction)
        self.without = tuple(integer('without', block, low=0) for block in (
            (without,) if isinstance(without, int) else without))
        self.init = choice('init', init, ('pruned', 'random'))
        self.join = choice('join', join, ('add', 'gate'))
        self.starts_at_trunk = join == 'add'

    def apply(self, trunk, parts):
        stages = used(trunk)
        left = {integer('without', block, low=0, high=sum(map(len, stages)) - 1) for block in self.without}
        widths = [parts.like(blocks[-1]).numel() for blocks in stages]
        narrow = [max(1, width // self.reduction) for width in widths]
        found, cells = layers_of(trunk, parts), CELLS if len(stages) > 1 else None
        rungs, number = [{} for _ in stages], 0
        for i, blocks in enumerate(stages):
            for j, block in enumerate(blocks):
                if number not in left:
                    mid = len(found[block]['fc1'][0]) // self.reduction if 'fc1' in found[block] else 4 * narrow[i]
                    rungs[i][str(j)] = nn.ModuleDict(dict(
                        down=Dense(widths[i], narrow[i]), gate=Gate(),
                        block=SideBlock(narrow[i], max(1, mid), heads_of(block, narrow[i]), cells)))
                number += 1
        merges = {str(i): Dense(narrow[i - 1], narrow[i]) for i in range(1, len(stages))}
        ups = {}
        for i, j in parts.taps(trunk):
            wide = widths[i] if j != 'merged' else parts.like(parts.stages(trunk)[i + 1][0]).numel()
            ups[f'{i}_{j}'] = nn.ModuleDict(dict(norm=Norm(narrow[i]), up=Dense(narrow[i], wide)))
            if self.join == 'add':
                ups[f'{i}_{j}']['up'].zero()
            else:
                ups[f'{i}_{j}']['gate'] = Gate()
        trunk.lst = Ladder(Dense(widths[0], narrow[0]), rungs, merges, ups).to(parts.like(stages[0][0]))
        self.prune(trunk)
        reroute(trunk, parts, ladder)

    def loaded(self, trunk, missing):
        if any(name.startswith('lst.') for name in missing):
            self.prune(trunk)

    @torch.no_grad()
    def prune(self, trunk):
        """Give the side blocks the weights of the trunk's, of their most important channels."""
        if self.init == 'random':
            return
        found = layers_of(trunk, trunk.tuning.parts)
        for blocks, rungs in zip(used(trunk), trunk.lst.stages):
            writers = [found[block][role][0] for block in blocks for role in ('proj', 'fc2') if role in found[block]]
            if writers and rungs:
                width = next(iter(rungs.values()))['block'].norm1.weight.numel()
                stream = largest(sum(weight.abs().sum(1) for weight in writers), width)
                for j, rung in rungs.items():
                    prune_block(rung['block'], blocks[int(j)], found[blocks[int(j)]], stream)


def layers_of(trunk, parts):
    """{block: {role: (weight, bias)}} of the blocks in use: linears between the stream's width and others.

    A block whose attention has no q, k and v of the stream's width on both sides has none of its roles.
    """
    found = {block: {} for blocks in used(trunk) for block in blocks}
    owner = {layer: block for block in found for layer in block.modules()}
    for role in [role for role in ('q', 'k', 'v', 'proj', 'fc1', 'fc2') if role in parts.ROLES]:
        try:
            layers = linears(trunk, parts, (role,))
        except ValueError:                                              # none here: convolutions, or torch's attention
            continue
        for _, layer, (i,), of in layers:
            bias = None if layer.bias is None else layer.bias.chunk(of)[i]
            if layer in owner:
                found[owner[layer]][role] = layer.weight.chunk(of)[i], bias
    for block, roles in found.items():
        width = parts.like(block).numel()
        square = all(role in roles and roles[role][0].shape == (width, width) for role in ('q', 'k', 'v', 'proj'))
        mlp = all(role in roles for role in ('fc1', 'fc2')) and roles['fc1'][0].shape == roles['fc2'][0].t().shape
        found[block] = {role: pair for role, pair in roles.items()
                        if (square if role in ('q', 'k', 'v', 'proj') else mlp and len(roles['fc2'][0]) == width)}
    return found


def heads_of(block, width):
    """Heads of a side block: the trunk block's, where the width can be divided by them, else one."""
    heads = next((module.num_heads for module in block.modules() if isinstance(getattr(module, 'num_heads', 0), int)
                  and getattr(module, 'num_heads', 0)), 1)
    return 1 if width % heads else heads


def largest(scores, count):
    """Places of the `count` highest scores, ascending."""
    return scores.topk(count).indices.sort().values


def prune_block(side, block, roles, stream):
    """Give a side block weights of a trunk block.

    Args:
        roles (dict): of `layers_of`.
        stream (Tensor): the channels of the stream that stay, (w,).
    """
    norms = [module for module in block.modules() if is_norm(module) and getattr(module, 'bias', None) is not None
             and module.weight.shape == module.bias.shape and module.weight.numel() > stream.max()]
    for own, norm in zip((side.norm1, side.norm2), (norms[:1] + norms[-1:]) if len(norms) > 1 else ()):
        own.weight.copy_(norm.weight[stream])
        own.bias.copy_(norm.bias[stream])
    if 'q' in roles:
        q, k, v = (roles[role][0] for role in 'qkv')
        count = len(stream) // side.heads

        def of_each_head(scores):
            heads = scores.unflatten(0, (side.heads, -1))
            each = torch.stack([largest(head, count) for head in heads])
            return (each + heads.shape[1] * torch.arange(side.heads, device=each.device)[:, None]).flatten()

        pairs, values = of_each_head(q.abs().sum(1) + k.abs().sum(1)), of_each_head(v.abs().sum(1))
        width = len(stream)
        for i, (role, rows) in enumerate((('q', pairs), ('k', pairs), ('v', values))):
            copy_into(side.qkv.s[i * width:(i + 1) * width], side.qkv.bias[i * width:(i + 1) * width], roles[role],
                      rows, stream)
        copy_into(side.proj.s, side.proj.bias, roles['proj'], stream, values)
    if 'fc1' in roles:
        inner = largest(roles['fc1'][0].abs().sum(1), len(side.fc1.s))
        copy_into(side.fc1.s, side.fc1.bias, roles['fc1'], inner, stream)
        copy_into(side.fc2.s, side.fc2.bias, roles['fc2'], stream, inner)


def copy_into(weight, bias, pair, rows, columns):
    """The rows and columns of a trunk's (weight, bias) that stay."""
    weight.copy_(pair[0][rows][:, columns])
    bias.zero_() if pair[1] is None else bias.copy_(pair[1][rows])


def ladder(trunk, image, **options):
    """The stock forward with the ladder beside it; (B, 3, H, W) to what the stock trunk returns."""
    refuse_options(trunk, options)
    parts = trunk.tuning.parts
    return walk(trunk, parts, image, partial(climb, trunk, parts), partial(give_out, trunk, parts),
                partial(step, trunk, parts))


def split(parts, l, grid):
    """The trunk's tokens with channels last: those in front of the map, (B, P, C), and the map, (B, h, w, C)."""
    l = l.movedim(parts.AXIS, -1)
    if l.dim() == 4:
        return l[:, :0].flatten(1, 2), l
    height, width = grid[:2]
    count = l.shape[1] - height * width
    return l[:, :count], l[:, count:].unflatten(1, (height, width))


def climb(trunk, parts, i, j, block, state, shape):
    """(l, s) behind a block; s is two tensors, as of `split`."""
    side, grid = trunk.lst, parts.grid(block, shape)
    l, s = state if isinstance(state, tuple) else (state, projected(side.first, split(parts, state, grid)))
    with torch.no_grad():
        l = parts.run(block, l, shape)
    tokens = split(parts, l, grid)
    if i and not j:
        s = projected(side.merges[str(i)], (s[0], to_grid(s[1], tokens[1].shape[1:3])))
    if str(j) in side.stages[i]:
        rung = side.stages[i][str(j)]
        s = rung['block'](*(rung['gate'](own, rung['down'](trunk_s)) for own, trunk_s in zip(s, tokens)))
    return l, s


def projected(projection, tokens):
    """The side's stream keeps the type of the trunk's, under autocast too."""
    return tuple(projection(one).to(one.dtype) for one in tokens)


def to_grid(patches, grid):
    return patches if patches.shape[1:3] == torch.Size(grid) else averaged(patches, grid)


def step(trunk, parts, module, state, shape):
    """From stage to stage: the trunk's own merge, and the side's map averaged."""
    l, (prefix, patches) = state
    with torch.no_grad():
        l, shape = parts.merge(module, l, shape)
    return (l, (prefix, to_grid(patches, split(parts, l, shape)[1].shape[1:3]))), shape


def give_out(trunk, parts, tap, state):
    """The trunk's tokens joined with the side's, in the trunk's width."""
    l, s = state
    top = trunk.lst.ups['_'.join(map(str, tap))]
    prefix, patches = (top['up'](top['norm'](one)) for one in s)
    own = l.movedim(parts.AXIS, -1)
    added = patches if own.dim() == 4 else torch.cat([prefix, patches.flatten(1, 2)], dim=1)
    return (top['gate'](own, added) if 'gate' in top else own + added).movedim(-1, parts.AXIS)
