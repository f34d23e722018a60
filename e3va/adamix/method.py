"""AdaMix: Mixture-of-Adaptations for PEFT (Wang et al., EMNLP 2022, arXiv 2205.12410; code microsoft/AdaMix).

Each module has n down and n up projections of which every pass draws one each, at random; training adds the divergence
of two such passes, and evaluation takes the mean of the projections, which is one module of the usual size. This file
says what is drawn, by DMLoRA's branches, and what the divergence is; `AdaMixHook` says when.

Where we differ: the paper's adapters start from small random values; here the up projections are zero, so that training
starts at the trunk.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

from ..dmlora.method import Branches, DMLoRA
from ..layers.bottleneck import ACTIVATIONS
from ..methods.base import choice, follow, integer, role_names
from ..registry import METHODS


class MixAdapter(nn.Module):
    """x + U act(D x + b_D) + b_U for x (..., C), with D, b_D and U, b_U drawn in training, and their means else.

    Shapes: a branch of `down` (r, C + 1), of `up` (C, r + 1); the last column is the bias, which is drawn with its
    weights.
    """

    def __init__(self, width, rank, downs, ups, activation):
        super().__init__()
        self.activation = activation
        self.down = Branches(nn.Parameter(start(rank, width)) for _ in range(downs))
        self.up = Branches(nn.Parameter(torch.zeros(width, rank + 1)) for _ in range(ups))

    def forward(self, x):
        down, up = self.down(), self.up()
        inner = ACTIVATIONS[self.activation](F.linear(x, down[:, :-1], down[:, -1]))
        return x + F.linear(inner, up[:, :-1], up[:, -1])


def start(rank, width):
    """A down projection with its bias: LoRA's kaiming, zero."""
    weight = nn.init.kaiming_uniform_(torch.empty(rank, width), a=math.sqrt(5))
    return torch.cat([weight, torch.zeros(rank, 1)], dim=1)


def divergence(one, other):
    """(KL(p | q) + KL(q | p)) / 2 of two passes' logits (B, classes, ...), the mean over all but the classes."""
    p, q = (logits.float().movedim(1, -1).log_softmax(-1) for logits in (one, other))
    return ((p.exp() - q.exp()) * (p - q)).sum(-1).mean() / 2


@METHODS.register_module()
class AdaMix(DMLoRA):
    """n adapters behind the MLP (Pfeiffer's place), or n LoRAs, of which each pass draws one down and one up.

    Without a runner call `e3va.dmlora.method.draw(model, step)` before each step, and add `divergence` of a second pass
    behind another draw. `e3va.dmlora.method.average(model)` leaves one plain module of each, the mean.

    Args:
        module (str): 'adapter', or 'lora', which merges (see `DMLoRA`).
        rank (int): r; 16 and 48 in the paper, for BERT and RoBERTa.
        branches (int): n, 4 in the paper.
        share (str): 'up' or 'down': this projection is a single one (the paper shares up on small data sets).
        activation (str): of the adapters: 'gelu', 'relu' or 'quick_gelu'.
        scale (float): of the LoRAs.
        roles (sequence of str): of the adapters 'fc2' (behind the MLP), 'proj' (behind the attention); of the LoRAs the
            linears that are adapted. Default: fc2; q and v.
        targets (str or sequence of str): of the LoRAs, see `LoRA`.
        train_out_norms (bool): see `Method`.
    """

    hook = 'e3va.AdaMixHook'
    needs_family = True

    def __init__(self, module='adapter', rank=16, branches=4, share=None, activation='gelu', scale=1., roles=None,
                 targets=None, train_out_norms=False):
        self.module = choice('module', module, ('adapter', 'lora'))
        if module == 'adapter' and targets is not None:
            raise ValueError(f'targets={targets!r} names layers for LoRAs; adapters stand behind roles: give roles, or '
                             "module='lora'")
        super().__init__(rank, branches, scale, roles, share, False, train_out_norms, targets)
        self.activation = choice('activation', activation, tuple(ACTIVATIONS))
        if module == 'adapter':
            self.roles = role_names(('fc2',) if roles is None else roles)
        self.mergeable = module == 'lora'
        self.needs_family = module == 'adapter'

    def apply(self, trunk, parts):
        if self.module == 'lora':
            super().apply(trunk, parts)
        else:
            follow(trunk, parts, self.roles, self.make)

    def make(self, width):
        downs, ups = (1 if self.share == name else self.branches for name in ('down', 'up'))
        return MixAdapter(width, integer('rank', self.rank, high=width), downs, ups, self.activation)
