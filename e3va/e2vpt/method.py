"""E2VPT: An Effective and Efficient Approach for Visual Prompt Tuning (Han et al., ICCV 2023, arXiv 2307.13770).

Public code: ChengHan111/E2VPT. To the prompts of VPT's deep form come prompts of the attention itself: rows P_K and P_V
beside its keys and values (Eq. 5), which stand behind no token. The prompts among the tokens are pruned, whole ones
first, then segments of those that are left, by the importance

    S_k = E_x |dL(x) / d rho_k|   at rho = 1, where rho_k multiplies the prompt k in all blocks, rho_kr a segment of it,

which is the inner product of prompt and gradient. What survives is rewound to its start and trained again. This file
says what happens, `E2VPTHook` says when.

Where we differ from the code: it trains the rho of its first run too, and prunes tokens to zeros that stay among the
tokens; here rho is 1, and a pruned token is gone. Its segments are every sixteenth channel, here, as in the text, they
lie in a row. Its scores are signed, `importance='signed'`, and for want of a step all segments of a token have the
token's score there.
"""
from functools import partial

import torch
from mmengine import dist
from torch import nn
from torch.nn import functional as F

from ..methods.base import choice, integer
from ..methods.vpt import VPT, attend, attention_of, read_prompts
from ..registry import METHODS
from ..surgery import rebind
from ..trunks import norm_of, used
from ..tuned import find_tuned


class SegmentedPrompts(nn.Module):
    """p prompts (p, C) in equal segments, of which some may be gone: there are zeros.

    Shapes: `tokens` (p, s, C / R), the segments that are left; `segments` (p, s), which of the R they are.
    """

    def __init__(self, count, segments, like, bound, dropout):
        super().__init__()
        shape = count, segments, like.numel() // segments
        self.tokens = nn.Parameter(like.new_empty(shape).uniform_(-bound, bound))
        self.register_buffer('segments', torch.arange(segments, device=like.device).repeat(count, 1))
        self.of, self.dropout = segments, dropout

    def forward(self, batch):
        whole = self.tokens
        if whole.shape[1] < self.of:
            empty = whole.new_zeros(len(whole), self.of, whole.shape[2])
            whole = empty.scatter(1, self.segments[..., None].expand_as(whole), whole)
        return F.dropout(whole.flatten(1).expand(batch, -1, -1), self.dropout, self.training)

    def keep(self, tokens, segments):
        """Have these tokens (m,) alone, and of each these of the segments that are left, (m, s)."""
        places = segments.to(self.tokens.device)
        self.tokens.data = self.tokens.data[tokens].take_along_dim(places[..., None], 1)
        self.segments = self.segments[tokens].take_along_dim(places, 1)

    def reshape(self, count, segments):
        """Have room for so many tokens of so many segments."""
        self.tokens.data = self.tokens.new_zeros(count, segments, self.tokens.shape[2])
        self.segments = self.segments.new_zeros(count, segments)


class KeyValues(nn.Module):
    """k rows (k, C) for keys and values, heads side by side; shared, as in the public code, or of their own.

    Shapes: `rows` (1, k, C) or (2, k, C); forward() gives (2, k, C).
    """

    def __init__(self, count, like, shared, dropout):
        super().__init__()
        self.rows = nn.Parameter(nn.init.trunc_normal_(like.new_empty(1 if shared else 2, count, like.numel()),
                                                       std=0.02))
        self.dropout = dropout

    def forward(self):
        return F.dropout(self.rows, self.dropout, self.training).expand(2, -1, -1)


@METHODS.register_module()
class E2VPT(VPT):
    """Prompts for each block, among its tokens and among its attention's keys and values; the trunk runs in eval mode.

    Without a runner: `importance`, `survivors` and `prune` of `e3va.e2vpt.method`, then train from the start again.
    Refused, besides what VPT refuses: attentions that read their weights past any layer (timm's Eva).

    Args:
        tokens (int): prompts among the tokens; 5 in the public code, chosen per task in the paper.
        key_values (int): rows for keys and values; 5 in the public code.
        shared (bool): one row is key and value.
        segments (int): R, into which a prompt is cut, 16 in the public code; a divisor of every width.
        dropout (float): of all of them, in training.
        train_out_norms (bool): see `Method`.
    """

    def __init__(self, tokens=5, key_values=5, shared=True, segments=16, dropout=0., train_out_norms=False):
        super().__init__(tokens, True, dropout, train_out_norms)
        self.key_values = integer('key_values', key_values)
        self.shared = choice('shared', shared, (True, False))
        self.segments = integer('segments', segments)

    def refusal(self, family):
        if family == 'eva':
            return 'its attention reads its weights past any layer, where no rows can join keys and values'
        return super().refusal(family)

    def apply(self, trunk, parts):
        super().apply(trunk, parts)
        for blocks in used(trunk):
            for block in blocks:
                block.key_values = KeyValues(self.key_values, norm_of(block).weight, self.shared, self.dropout)
                attention = attention_of(block)
                if hasattr(attention, 'relative_position_bias_table'):
                    rebind(attention, 'forward', partial(further_windows, block))
                elif hasattr(attention, 'qkv'):
                    rebind(attention, 'forward', partial(further_tokens, block))
                    rebind(attention.qkv, 'forward', partial(further_rows, block))
                else:
                    rebind(attention, 'forward', partial(further_of_torch, block))

    def make(self, like, bound):
        if like.numel() % self.segments:
            raise ValueError(f'segments={self.segments} does not divide the width of {like.numel()}: give a divisor of '
                             "every block's width, e.g. 8")
        return SegmentedPrompts(self.tokens, self.segments, like, bound, self.dropout)

    def expect(self, trunk, given):
        """Pruned prompts come in a shape of their own."""
        super().expect(trunk, given)
        for name, prompts in prompts_of(trunk).items():
            shape = getattr(given.get(f'{name}.tokens'), 'shape', None)
            fits = shape and len(shape) == 3 and shape[2] == prompts.tokens.shape[2]
            if fits and 0 < shape[0] <= self.tokens and 0 < shape[1] <= self.segments:
                prompts.reshape(*shape[:2])

    def loaded(self, trunk, missing):
        for name, prompts in prompts_of(trunk).items():
            if not prompts.segments.is_meta and int(prompts.segments.max()) >= self.segments:
                raise ValueError(f'{name}.segments names segments that a prompt of {self.segments} has not: the '
                                 'weights are of another E2VPT')


def prompts_of(trunk):
    """{name: module} of the prompts that can be pruned."""
    return {name: module for name, module in trunk.named_modules() if isinstance(module, SegmentedPrompts)}


# ---- rows for keys and values

def further_windows(block, attention, x, mask=None):
    """The stock attention of a Swin's normed windows x (B W, N, C), with prompts and with rows for keys and values."""
    return attend(attention, x, norm_of(block)(block.prompts(1)), mask, further=block.key_values())


def further_tokens(block, attention, x, **options):
    """The same of a ViT's normed tokens x (B, L, C): stand-ins for the rows come last, which `further_rows` fills."""
    both = torch.cat((x, read_prompts(block, x.shape[0], options)), dim=1)
    both = F.pad(both, (0, 0, 0, block.key_values.rows.shape[1]))
    return type(attention).forward(attention, both, **options)[:, :x.shape[1]]


def further_rows(block, linear, x):
    """q, k and v of tokens (B, L, C), of whose last ones keys and values are the block's rows."""
    keys, values = block.key_values()
    own = type(linear).forward(linear, x[:, :-len(keys)])
    rows = torch.cat((torch.zeros_like(keys), keys, values), dim=-1).to(own.dtype)
    return torch.cat((own, rows.expand(x.shape[0], -1, -1)), dim=1)


def further_of_torch(block, attention, x, **options):
    """The same of mmcv's attention, which is torch's: that one has a place for such rows, its `bias_k` and `bias_v`."""
    both = torch.cat((x, read_prompts(block, x.shape[0], options)), dim=1)
    inner = attention.attn
    inner.bias_k, inner.bias_v = block.key_values()[:, :, None]
    try:
        return type(attention).forward(attention, x, key=both, **options)
    finally:
        inner.bias_k = inner.bias_v = None


# ---- pruning

def contributions(trunk):
    """dL / d rho (p, R) of every segment, from the gradients of the prompts: their inner products, over all blocks."""
    return sum((prompts.tokens * prompts.tokens.grad).sum(-1).detach() for prompts in prompts_of(trunk).values())


def importance(model, batches, loss, kind='absolute'):
    """How much the loss depends on each prompt and each of its segments: means over batches of training data.

    Args:
        model (nn.Module): tuned by E2VPT and not pruned, in the mode in which the losses are to be computed.
        batches (iterable): of training data; under DDP each process has its own.
        loss (callable): batch -> a scalar tensor.
        kind (str): 'absolute' (the paper's formula, an x being a batch) or 'signed' (its public code).

    Returns:
        (Tensor, Tensor): of tokens (p,), of segments (p, R); in every process the same.

    Raises:
        ValueError: there are no batches, or no gradient, or one that is not finite (the batch is named).
    """
    choice('kind', kind, ('absolute', 'signed'))
    trunk = find_tuned(model)[1]
    found = prompts_of(trunk)
    parameters = [prompts.tokens for prompts in found.values()]
    size = parameters[0].shape[:2]
    tokens, segments, count = (torch.zeros(*shape, device=parameters[0].device) for shape in (size[:1], size, (1,)))
    for number, batch in enumerate(batches):
        for parameter in parameters:
            parameter.grad = None
        gradients = torch.autograd.grad(loss(batch), parameters)
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        each = contributions(trunk)
        if not each.isfinite().all():
            raise ValueError(f'E2VPT cannot prune: the gradient of batch {number} is not finite; look at its images '
                             'and at the rate that led here')
        whole = each.sum(1)
        tokens += whole.abs() if kind == 'absolute' else whole
        segments += each.abs() if kind == 'absolute' else each
        count += 1
    for parameter in parameters:
        parameter.grad = None
    for value in (tokens, segments, count):
        dist.all_reduce(value)
        dist.broadcast(value)                                           # and no rounding of one process's own
    if not count:
        raise ValueError('E2VPT cannot prune: there is no training data')
    if not segments.any():
        raise ValueError('E2VPT cannot prune: no gradient reaches the prompts. Does the loss depend on the output of '
                         'the trunk, and is there a layer of zeros between them?')
    return tokens / count, segments / count


def survivors(tokens, segments, cut_tokens, cut_segments):
    """What is left when these shares of tokens, and of the segments of each, are cut: the least important go.

    At least one stays of each; of equal ones the first goes first.

    Returns:
        (Tensor, Tensor): tokens (m,) and their segments (m, s), in order.
    """
    def order(scores, share):
        gone = min(int(scores.shape[-1] * share + 1e-9), scores.shape[-1] - 1)
        return scores.argsort(dim=-1, stable=True)[..., gone:].sort(-1).values
    left = order(tokens, cut_tokens)
    return left, order(segments[left], cut_segments)


def prune(trunk, tokens, segments):
    """Keep these tokens and segments, the same in all blocks."""
    for prompts in prompts_of(trunk).values():
        prompts.keep(tokens, segments)


def pruned(trunk):
    """Whether anything is gone."""
    method = trunk.tuning.method
    return any(prompts.tokens.shape[:2] != (method.tokens, method.segments) for prompts in prompts_of(trunk).values())
