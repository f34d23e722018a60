"""The bottleneck that adapters share: down, activation, dropout, up."""
import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .quantised import Quantised


def quick_gelu(x):
    """CLIP's approximation of GELU, which NOAH's adapters take."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = dict(gelu=F.gelu, relu=F.relu, quick_gelu=quick_gelu)

KAIMING = partial(nn.init.kaiming_uniform_, a=math.sqrt(5))
NORMAL = partial(nn.init.trunc_normal_, std=0.02)

# Name: how down, up and the biases are filled. Where `up` and the biases are zero, the start is the trunk's.
INITS = dict(
    lora_xavier=(nn.init.xavier_uniform_, nn.init.zeros_, nn.init.zeros_),
    lora_kaiming=(KAIMING, nn.init.zeros_, nn.init.zeros_),
    xavier=(nn.init.xavier_uniform_, nn.init.xavier_uniform_, partial(nn.init.normal_, std=1e-6)),
    trunc_normal=(NORMAL, NORMAL, nn.init.zeros_),
    vpt_zero=(nn.init.zeros_, nn.init.zeros_, nn.init.zeros_))


def starts_at_zero(init):
    """Whether a bottleneck of this init gives zero."""
    return INITS[init][1] is nn.init.zeros_


class Bottleneck(Quantised):
    """scale * (U dropout(act(D x + b_D)) + b_U), for x (..., C); the skip is left to who calls it.

    Args:
        width (int): C.
        rank (int): r, channels inside.
        activation (str): of ACTIVATIONS; None: none.
        dropout (float): of the activations inside.
        bias (bool): whether there are b_D and b_U.
        init (str): of INITS.
        scale (float): fixed.
        bits (int): of each entry of D and U, see `Quantised`.
        out (int): channels behind U; default: C.
        groups (int): U stands for a block-diagonal matrix of so many blocks, (out, r / groups); for who computes with
            the factors by himself, as a convolution does.
    """

    def __init__(self, width, rank, activation='gelu', dropout=0., bias=True, init='lora_xavier', scale=1., bits=32,
                 out=None, groups=1):
        super().__init__()
        self.activation, self.dropout, self.scale = activation, dropout, scale
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.empty(out or width, rank // groups))
        self.down_bias = nn.Parameter(torch.empty(rank)) if bias else None
        self.up_bias = nn.Parameter(torch.empty(out or width)) if bias else None
        fill_down, fill_up, fill_bias = INITS[init]
        fill_down(self.down), fill_up(self.up)
        if bias:
            fill_bias(self.down_bias), fill_bias(self.up_bias)
        if bits < 32:                                       # the signs of zeros would be nothing to start from
            nn.init.trunc_normal_(self.up, std=1e-3, a=-2e-3, b=2e-3)
        self.quantise(bits, 'down', 'up')

    def forward(self, x, linear=F.linear):
        """`linear` is what multiplies x by D; see `layers.packed`."""
        inner = linear(x, self.value('down'), self.down_bias)
        if self.activation:
            inner = ACTIVATIONS[self.activation](inner)
        inner, up = F.dropout(inner, self.dropout, self.training), self.value('up')
        if self.scale == 1:
            return F.linear(inner, up, self.up_bias)
        # The parameters are smaller than the tokens.
        return F.linear(inner, self.scale * up, None if self.up_bias is None else self.scale * self.up_bias)
