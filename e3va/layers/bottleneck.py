"""The bottleneck that adapters share: down, activation, dropout, up."""
import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


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


class Bottleneck(nn.Module):
    """scale * (U dropout(act(D x + b_D)) + b_U), for x (..., C); the skip is left to who calls it.

    Args:
        width (int): C.
        rank (int): r, channels inside.
        activation (str): of ACTIVATIONS.
        dropout (float): of the activations inside.
        bias (bool): whether there are b_D and b_U.
        init (str): of INITS.
        scale (float): fixed.
    """

    def __init__(self, width, rank, activation='gelu', dropout=0., bias=True, init='lora_xavier', scale=1.):
        super().__init__()
        self.activation, self.dropout, self.scale = activation, dropout, scale
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.empty(width, rank))
        self.down_bias = nn.Parameter(torch.empty(rank)) if bias else None
        self.up_bias = nn.Parameter(torch.empty(width)) if bias else None
        fill_down, fill_up, fill_bias = INITS[init]
        fill_down(self.down), fill_up(self.up)
        if bias:
            fill_bias(self.down_bias), fill_bias(self.up_bias)

    def forward(self, x):
        inner = ACTIVATIONS[self.activation](F.linear(x, self.down, self.down_bias))
        inner = F.dropout(inner, self.dropout, self.training)
        if self.scale == 1:
            return F.linear(inner, self.up, self.up_bias)
        # The parameters are smaller than the tokens.
        return F.linear(inner, self.scale * self.up, None if self.up_bias is None else self.scale * self.up_bias)
