"""GELU whose backward keeps the derivative in 8 bits, where torch's own keeps the input, four times as much.

    y = x Phi(x);   dy/dx = Phi(x) + x phi(x), which lies between -0.129 (at x = -sqrt 2) and 1.129

The output is torch's own; the derivative that is kept is wrong by at most half a step, 0.0025. The idea is Approx-BP's
(Yang et al., ICML 2024, arXiv 2406.16282), whose step function takes 2 bits and changes the gradient by far more.
"""
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..surgery import called, unwrap, wrap
from .recompute import plain

LOW, STEP = -0.14, 1.28 / 255                                           # of the 256 levels; bf16 rounds 1.129 to 1.133
FORMS = {'torch.nn.modules.activation.GELU': None, 'timm.layers.activations.GELU': 'none',     # None: it says itself
         'timm.layers.activations.GELUTanh': 'tanh'}
WAYS = 'exact', 'int8'


class Gelu8(Function):
    """GELU of x, any shape, in torch's form `approximate`."""

    @staticmethod
    def forward(ctx, x, approximate):
        slope = torch.ops.aten.gelu_backward(torch.ones((), dtype=x.dtype, device=x.device).expand_as(x), x,
                                             approximate=approximate)
        ctx.save_for_backward(slope.sub_(LOW).mul_(1 / STEP).round_().to(torch.uint8))
        return F.gelu(x, approximate=approximate)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        code, = ctx.saved_tensors
        return code.to(gradient.dtype).mul_(STEP).add_(LOW).mul_(gradient), None


def keep_8_bits(trunk, demanded=True):
    """Let every GELU of a trunk keep 8 bits an entry for backward; ValueError where there is none but one is demanded.
    """
    found = [module for module in trunk.modules() if name_of(module) in FORMS]
    if demanded and not found:
        raise ValueError(f"gelu='int8': {type(trunk).__name__} has no GELU (its activations are others); leave it out")
    for module in found:
        wrap(module, 'forward', forward)


def keep_inputs(trunk):
    """Undo `keep_8_bits`."""
    unwrap(trunk, forward)


def name_of(module):
    return f'{type(module).__module__}.{type(module).__qualname__}'


def forward(before, module, x):
    if plain() or not x.requires_grad:
        return called(before, module)(x)
    return Gelu8.apply(x, FORMS[name_of(module)] or module.approximate)
