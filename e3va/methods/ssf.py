"""SSF (Lian et al., NeurIPS 2022, arXiv 2210.08823): y = scale * x + shift behind each operation.

The operations are those of the authors' code: linears of attention and MLP, convolutions (patch embedding; ConvNeXt's
downsampling and depthwise ones), norms (of the blocks, the patch embedding, the downsampling, the outputs). Not Swin's
bias-free downsampling linear, norms of q and k, LayerScale and GRN. Merged, they are part of its weight and bias.
"""
import re

import torch
from torch import nn

from ..layers.delta_linear import NO_BIAS
from ..registry import METHODS
from ..surgery import rebind, unbind
from ..trunks import unused
from .base import Method, norms

# What is left out; torch's own attention (mmsegmentation's ViT) and attention pooling do not call their `out_proj`.
LEFT_OUT = r'.*\.(reduction|[qk]_norm|out_proj)|attn_pool\..*'


@METHODS.register_module()
class SSF(Method):
    """Scale and shift, one pair for each channel, behind the operations of the trunk (ViT-B: 205,824 parameters).

    scale ~ N(1, 0.02), shift ~ N(0, 0.02), as in the authors' code: training starts close to the trunk, not at it.

    Args:
        train_out_norms (bool): see `Method`; scale and shift behind them train anyway.
    """

    mergeable = True
    starts_at_trunk = False

    def apply(self, trunk, parts):
        idle, left_out = unused(trunk), f'{LEFT_OUT}|{parts.HEAD}' if parts.HEAD else LEFT_OUT
        operations = {name: module for name, module in trunk.named_modules()
                      if isinstance(module, (nn.Linear, nn.Conv2d)) and not name.startswith(idle)}
        for name, module in {**operations, **norms(trunk)}.items():
            if not re.fullmatch(left_out, name):
                channels = module.weight.shape[:1]
                module.scale = nn.Parameter(torch.normal(1., 0.02, channels).to(module.weight))
                module.shift = nn.Parameter(torch.normal(0., 0.02, channels).to(module.weight))
                rebind(module, 'forward', scaled)
                rebind(module, 'merged', merged)


def scaled(module, x, *args, **options):
    """The stock forward of a layer, then scale and shift of its channels, in the output's own type."""
    out = type(module).forward(module, x, *args, **options)
    scale, shift = module.scale, module.shift
    if '2d' in type(module).__name__ and options.get('data_format') != 'channel_last':
        scale, shift = scale[:, None, None], shift[:, None, None]       # (B, C, H, W)
    return (out * scale + shift).to(out.dtype)


def merged(module):
    """The layer itself with scale and shift inside its weight and bias; ValueError if it has no bias."""
    if getattr(module, 'bias', None) is None:
        raise ValueError(NO_BIAS)
    weight, bias, scale = module.weight, module.bias, module.scale.detach()
    module.weight = nn.Parameter(weight.detach() * scale.view(-1, *[1] * (weight.dim() - 1)), weight.requires_grad)
    module.bias = nn.Parameter(bias.detach() * scale + module.shift.detach(), bias.requires_grad)
    del module.scale, module.shift
    unbind(module, 'forward'), unbind(module, 'merged')
    return module
