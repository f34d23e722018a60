"""VPT: Visual Prompt Tuning (Jia et al., ECCV 2022, arXiv 2203.12119; public code KMnP/vpt).

p trained tokens, the prompts, stand among the tokens of the frozen trunk:

    shallow (Eq. 4, 5)  [x_i, Z_i, E_i] = L_i([x_{i-1}, Z_{i-1}, E_{i-1}]),  Z_0 = P
    deep (Eq. 7)        [x_i, _,   E_i] = L_i([x_{i-1}, P_{i-1}, E_{i-1}]),  prompts of its own for each block

What a deep block makes of its prompts is thrown away, so they act as further keys and values of its attention and
nothing else: only there they are computed. The trunk gives out its own tokens, as without prompts.

ViT: prompts carry no position, so their place among the tokens changes nothing; they come last.
Swin: an image's prompts are in each of its windows (padded ones too), without relative position bias and hidden by no
mask; the windows' results for them are averaged, and a merge takes a prompt as four equal tokens (shallow).

The paper's text has merges ignore the prompts; its code, followed here, merges them. Where we differ from the code: in
its shallow Swin the images of a batch trade their prompts, which it lays out as (window, image) where the windows are
(image, window). Here an image keeps its own: no difference for one image, nor in the deep form. And it averages the
prompts into Swin's pooled output, while a trunk that gives out maps has no place for them.
"""
import contextlib
import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ..registry import METHODS
from ..surgery import rebind
from ..trunks import FAMILIES, norm_of, used
from ..trunks.walk import refuse_options, reroute, through_branch, walk
from .base import Method, choice, integer, number

LONGEST = dict(vit=200, swin=50)            # the longest published prompts; no more than a window (49) has tokens


class Prompts(nn.Module):
    """p trained tokens (p, C), uniform in +-bound.

    forward(batch) gives (batch, p, C), in training with a dropout that is drawn for each image. The batch is given as
    x.shape[0], which stays an unknown in a trace or an export; len(x) would become the number of the example.
    """

    def __init__(self, count, like, bound, dropout):
        super().__init__()
        self.tokens = nn.Parameter(like.new_empty(count, like.numel()).uniform_(-bound, bound))
        self.dropout = dropout

    def forward(self, batch):
        return F.dropout(self.tokens.expand(batch, -1, -1), self.dropout, self.training)


@METHODS.register_module()
class VPT(Method):
    """Prompts among the tokens of a frozen trunk, which runs in eval mode, also in training (public code).

    They start uniform in +-sqrt(6 / (fan-in of the patch embedding + its width)), all stages alike (public code).

    Refused: ConvNeXt, which has no attention to read prompts; SAM's ViT, whose attention takes maps alone; a Swin with
    the attention of its second version, which compares angles and biases them otherwise.

    Args:
        tokens (int): p, 50 in the authors' examples. At most 200 in a ViT (the GPS paper's shallow form has these) and
            50 in a Swin, whose windows have about as many tokens.
        deep (bool): prompts for each block: p d L parameters in a ViT, p times the sum of the blocks' widths in a
            Swin. Otherwise for the first alone (p d), and what becomes of them goes on from block to block.
        dropout (float): of the prompts' entries in training; the paper's deep form has 0.1, its shallow form none.
            Drawn for each image; in Swin's deep form once for all of a batch, as in the public code.
        train_out_norms (bool): see `Method`.
    """

    starts_at_trunk = False
    trunk_mode = 'eval'

    def __init__(self, tokens=50, deep=True, dropout=0., train_out_norms=False):
        super().__init__(train_out_norms)
        self.tokens = integer('tokens', tokens)
        self.deep = choice('deep', deep, (True, False))
        self.dropout = number('dropout', dropout, low=0, below=1)

    def refusal(self, family):
        return FAMILIES[family].NO_PROMPTS if family else None

    def apply(self, trunk, parts):
        windowed = trunk.tuning.family.startswith('swin')
        integer(f'tokens (prompts in {"each window of a Swin" if windowed else "a ViT"})', self.tokens,
                high=LONGEST['swin' if windowed else 'vit'])
        embedding = [module for module in trunk.patch_embed.modules() if isinstance(module, nn.Conv2d)][-1]
        bound = math.sqrt(6 / (embedding.weight[0].numel() + embedding.out_channels))
        blocks = [block for stage in used(trunk) for block in stage]
        for block in blocks if self.deep else blocks[:1]:
            block.prompts = self.make(norm_of(block).weight, bound)
        for block in blocks if windowed or self.deep else ():
            attention = attention_of(block)
            if windowed and not hasattr(attention, 'relative_position_bias_table'):
                raise ValueError(f'VPT reads the window attention of the first Swin, not {type(attention).__name__}')
            if self.deep:
                rebind(attention, 'forward', partial(deep_windows if windowed else deep_tokens, block))
            else:
                rebind(attention, 'forward', shallow_attention)
        if not self.deep:
            reroute(trunk, parts, shallow_windows if windowed else shallow_tokens)

    def make(self, like, bound):
        """The prompts of a block whose norm has the weight `like`."""
        return Prompts(self.tokens, like, bound, self.dropout)


def attention_of(block):
    """The module of a block that attends: OpenMMLab's Swins have it inside another, which cuts windows."""
    return getattr(block.attn, 'w_msa', block.attn)


def deep_tokens(block, attention, x, **options):
    """The stock attention of a ViT's normed tokens x (B, L, C), with the block's prompts to attend to."""
    prompts, stock = read_prompts(block, x.shape[0], options), type(attention).forward
    if options.get('rope') is not None:                                 # is for patches: prompts stand in front of them
        with further_prefix(attention, prompts.shape[1]):
            return stock(attention, torch.cat((prompts, x), dim=1), **options)[:, prompts.shape[1]:]
    both = torch.cat((x, prompts), dim=1)
    if 'identity' in options:                                           # mmcv's takes keys of another length
        return stock(attention, x, key=both, **options)
    return stock(attention, both, **options)[:, :x.shape[1]]


def read_prompts(block, batch, options):
    """A block's prompts as its attention reads them, which takes no masks beside."""
    if options.get('attn_mask') is not None or options.get('is_causal'):
        raise ValueError('VPT takes no attn_mask and no is_causal: prompts are to be seen by every token')
    prompts = block.prompts(batch)
    post = type(block).__name__.endswith('PostNorm')                    # its attention reads what is not normed
    return prompts if post else norm_of(block)(prompts)


def deep_windows(block, attention, x, mask=None):
    """The same for windows x (B W, N, C), W to an image."""
    return attend(attention, x, norm_of(block)(block.prompts(1)), mask)


def attend(attention, x, prompts, mask, asking=False, further=None):
    """The stock window attention with prompts in each window.

    Args:
        x (Tensor): normed windows (B W, N, C), those of an image in a row.
        prompts (Tensor): normed (B, p, C), or (1, p, C) for all images.
        mask (Tensor): (W, N, N), added to the scores; or None.
        asking (bool): the prompts are queries too.
        further (Tensor): keys and values (2, k, C) that no token stands behind, for every window; or None.

    Returns:
        Tensor: (B W, N, C), or (B W, p + N, C) with the prompts' rows in front.
    """
    def split(tokens):                                                  # 3, n, heads, tokens, C / heads
        return attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)

    count, size = prompts.shape[1], x.shape[1]
    above = count if asking else 0
    given, own = split(prompts), split(x)
    given = given[:, :, None].expand(-1, -1, x.shape[0] // prompts.shape[0], -1, -1, -1).flatten(1, 2)
    q = torch.cat((given[0], own[0]), dim=-2) if asking else own[0]
    given = given[1:]
    if further is not None:
        further = further.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)[:, None].to(given.dtype)
        given = torch.cat((further.expand(-1, x.shape[0], -1, -1, -1), given), dim=-2)
        count += further.shape[-2]
    k, v = torch.cat((given, own[1:]), dim=-2)
    bias = attention.relative_position_bias_table[attention.relative_position_index.view(-1)].view(size, size, -1)
    scores = attention.scale * q @ k.transpose(-2, -1) + F.pad(bias.permute(2, 0, 1), (count, 0, above, 0))
    if mask is not None:
        mask = F.pad(mask, (count, 0, above, 0))[:, None]
        scores = (scores.unflatten(0, (-1, mask.shape[0])) + mask).flatten(0, 1)
    out = attention.attn_drop(scores.softmax(dim=-1)) @ v
    return attention.proj_drop(attention.proj(out.transpose(1, 2).flatten(2)))


def shallow_tokens(trunk, image, **options):
    """A ViT's forward with the prompts behind its tokens, from the first block to each output."""
    refuse_options(trunk, options)
    parts, count = trunk.tuning.parts, trunk.tuning.method.tokens

    front = getattr(trunk, 'rope', None) is not None                    # tables are for patches, behind the prefix

    def through(i, j, block, x, shape):
        if j == 0:
            prompts = block.prompts(x.shape[0])
            x = torch.cat((prompts, x) if front else (x, prompts), dim=1)
        with further_prefix(block.attn, count if front else 0):
            return through_branch(parts, 'mlp', block, through_branch(parts, 'attn', block, x, shape), shape)

    return walk(trunk, parts, image, through, lambda tap, x: x[:, count:] if front else x[:, :-count])


@contextlib.contextmanager
def further_prefix(attention, count):
    """Let a rotary attention take `count` more tokens in front of the patches as they are."""
    if not count:
        yield
        return
    attention.num_prefix_tokens += count
    try:
        yield
    finally:
        attention.num_prefix_tokens -= count


def shallow_windows(trunk, image, **options):
    """A Swin's forward with each image's prompts (B, p, C) beside its tokens."""
    refuse_options(trunk, options)
    parts = trunk.tuning.parts

    def through(i, j, block, x, shape):
        x, prompts = x if isinstance(x, tuple) else (x, block.prompts(x.shape[0]))
        attention = attention_of(block)
        attention.beside = norm_of(block)(prompts)
        x = through_branch(parts, 'attn', block, x, shape)
        prompts, attention.beside = prompts + attention.beside, None
        return tuple(through_branch(parts, 'mlp', block, tokens, shape) for tokens in (x, prompts))

    def merge(module, pair, shape):
        x, prompts = pair
        four = prompts.flatten(0, 1)[:, None].expand(-1, 4, -1)         # a map of 2 x 2 equal tokens for each prompt
        merged, _ = parts.merge(module, four if x.dim() == 3 else four.unflatten(1, (2, 2)), (2, 2))
        x, shape = parts.merge(module, x, shape)
        return (x, merged.flatten(1, -2)[:, 0].unflatten(0, prompts.shape[:2])), shape

    return walk(trunk, parts, image, through, lambda tap, pair: pair[0], merge)


def shallow_attention(attention, x, mask=None):
    """Window attention that finds the normed prompts in `attention.beside` and leaves there what becomes of them.

    For the time of a block only: the stock code that cuts the windows hands nothing else through.
    """
    prompts = attention.beside
    out = attend(attention, x, prompts, mask, asking=True)
    count = prompts.shape[1]
    attention.beside = out[:, :count].unflatten(0, (prompts.shape[0], -1)).mean(dim=1)
    return out[:, count:]
