"""SSF (Lian et al., NeurIPS 2022, arXiv 2210.08823): y = scale * x + shift behind each operation.

The operations are those of the authors' code: linears of attention and MLP, convolutions (patch embedding; ConvNeXt's
downsampling and depthwise ones), norms (of the blocks, the patch embedding, the downsampling, the outputs). Not Swin's
bias-free downsampling linear, norms of q and k, LayerScale and GRN. Merged, they are part of its weight and bias.
"""
import re

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers.delta_linear import NO_BIAS
from ..registry import METHODS
from ..surgery import rebind, unbind
from .base import Method, idle_places, is_norm, norms
from .targets import check_layer, frozen_layers, named, target_names

# What is left out; torch's own attention (mmsegmentation's ViT) and attention pooling do not call their `out_proj`.
# SAM's neck: as in the SSF that GPS compares with.
LEFT_OUT = r'.*\.(reduction|[qk]_norm|out_proj)|attn_pool\..*|channel_reduction\..*'


@METHODS.register_module()
class SSF(Method):
    """Scale and shift, one pair for each channel, behind the operations of the trunk (ViT-B: 205,824 parameters).

    scale ~ N(1, 0.02), shift ~ N(0, 0.02), as in the authors' code: training starts close to the trunk, not at it.

    On timm's ConvNeXt the last pair stands behind the norm in front of the classifier; the authors' code has it in
    front of that norm, where it could not be merged. Merging is refused where a layer has no bias to take the shift.

    In a trunk of no known family it stands behind every linear layer, convolution and norm but the classifier's, which
    is said.

    Args:
        targets (str or sequence of str): the linears, convolutions and norms that get a pair, in any module; see
            `LoRA`. Default: all that the rule above names.
        train_out_norms (bool): see `Method`; scale and shift behind them train anyway.
    """

    mergeable = True
    linear = {'scale': 1., 'shift': 0.}
    starts_at_trunk = False
    needs_family = False
    adapted = (nn.Linear, nn.Conv2d, nn.LayerNorm)                      # and other norms

    def __init__(self, train_out_norms=False, targets=None):
        super().__init__(train_out_norms)
        self.targets = target_names(targets)

    def adapts(self, module):
        return isinstance(module, (nn.Linear, nn.Conv2d)) or is_norm(module)

    def operations(self, trunk, parts):
        """{name: module} of what gets a scale and shift."""
        if self.targets is not None:
            return named(trunk, self)
        idle = idle_places(trunk)
        found = {name: module for name, module in trunk.named_modules()
                 if isinstance(module, (nn.Linear, nn.Conv2d)) and not name.startswith(idle)}
        return frozen_layers(trunk, {name: module for name, module in {**found, **norms(trunk)}.items()
                                     if not re.fullmatch(LEFT_OUT, name)})

    def apply(self, trunk, parts):
        found = self.operations(trunk, parts)
        if parts is None and self.targets is None:
            trunk.tuning.usual = found
        for name, module in found.items():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                check_layer(trunk, name, module, self)
            if isinstance(getattr(module, 'weight', None), nn.Parameter):
                channels = module.weight.shape[:1]
                module.scale = nn.Parameter(torch.normal(1., 0.02, channels).to(module.weight))
                module.shift = nn.Parameter(torch.normal(0., 0.02, channels).to(module.weight))
                keeps = parts and not (parts.IN_PLACE and re.fullmatch(parts.IN_PLACE, name))
                rebind(module, 'forward', scaled if keeps else scaled_for_any)
                rebind(module, 'merged', merged)


def scaled_for_any(module, x, *args, **options):
    """The same where an activation that works in place may follow, and change what `Scaled` keeps."""
    return scaled(module, x, *args, keep_output=False, **options)


def scaled(module, x, *args, keep_output=True, **options):
    """The stock forward of a layer, then scale and shift of its channels, in the output's own type."""
    scale, shift = module.scale, module.shift
    if type(module).__name__ == 'LayerNorm':                            # torch's and timm's: they become its own pair
        bias = shift if module.bias is None else module.bias * scale + shift
        return F.layer_norm(x, module.normalized_shape, module.weight * scale, bias, module.eps)
    if isinstance(getattr(module, 'act', None), nn.Module):             # timm's norms with an activation behind
        return in_place_of_own(module, x, *args, **options)
    out = type(module).forward(module, x, *args, **options)
    if channels_first(module) and options.get('data_format') != 'channel_last':
        scale, shift = (one.view(-1, *[1] * (out.dim() - 2)) for one in (scale, shift))         # (B, C, ...)
    if keep_output and out.dtype == torch.float32 and scale.dtype == torch.float32 and not torch.jit.is_tracing():
        return Scaled.apply(out, scale, shift)
    return (out * scale + shift).to(out.dtype)


def channels_first(module):
    return isinstance(module, (nn.Conv2d, nn.GroupNorm, _BatchNorm)) or '2d' in type(module).__name__


def in_place_of_own(module, x, *args, **options):
    """The stock forward of a norm with its own pair times ours, for those that go on to an activation."""
    own = dict(weight=module.weight * module.scale, bias=module.shift if module.bias is None else
               module.bias * module.scale + module.shift)
    vars(module).update(own)                                            # found before the parameters of these names
    try:
        return type(module).forward(module, x, *args, **options)
    finally:
        del vars(module)['weight'], vars(module)['bias']


class Scaled(torch.autograd.Function):
    """y = scale * x + shift, with y kept for the gradient of scale in place of x = (y - shift) / scale.

    Most of what follows (GELU, attention) keeps y as well, and then it is kept once; x would come on top. The division
    costs digits where scale is nearly zero, so below 1e-6 it divides by that, and 16-bit outputs go without.

    Shapes: x (..., C), or (B, C, H, W) with scale and shift (C, 1, 1).
    """

    @staticmethod
    def forward(context, x, scale, shift):
        y = torch.addcmul(shift, x, scale)
        context.save_for_backward(y, scale, shift)
        return y

    @staticmethod
    def backward(context, gradient):
        y, scale, shift = context.saved_tensors
        x_scaled = (gradient * (y - shift)).sum_to_size(scale.shape)
        return (gradient * scale if context.needs_input_grad[0] else None,
                x_scaled / torch.copysign(scale.abs().clamp(min=1e-6), scale), gradient.sum_to_size(shift.shape))


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
