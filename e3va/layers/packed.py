"""x W^T whose backward keeps x in 8 bits, with a scale for each token.

Of the gradients that of x is exact; W's has the rounding of x, at most half a step of 1/127 of a token's largest value
an entry. For a thin W (a down projection), beside which x is all that is kept. The idea is ActNN's (Chen et al., ICML
2021, arXiv 2104.14129) and Mesa's (Pan et al., 2021, arXiv 2111.11124), there of every layer.
"""
from functools import partial

from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .recompute import FORMS, plain

WAYS = 'exact', 'int8'


def pack(x, way):
    return FORMS[way].pack(x.detach()) if way != 'exact' else (x,)


def unpack(held, way, dtype):
    return FORMS[way].unpack(dtype, *held)


class PackedLinear(Function):
    """x (..., in), of which `held` is the packed form, times the transpose of weight (out, in)."""

    @staticmethod
    def forward(ctx, x, weight, way, *held):
        ctx.save_for_backward(weight, *held)
        ctx.way, ctx.kind = way, x.dtype
        return F.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        weight, *held = ctx.saved_tensors
        kind = gradient.dtype
        x = (gradient @ weight.to(kind)).to(ctx.kind) if ctx.needs_input_grad[0] else None
        of_weight = gradient.flatten(0, -2).T @ unpack(held, ctx.way, kind).flatten(0, -2)
        return x, of_weight.to(weight.dtype), None, *[None] * len(held)


def linear_of(x, way):
    """What takes the place of `F.linear` for all products with this x, which is packed once.

    Where nothing is recorded, or a trace is made, it is `F.linear` itself.
    """
    return F.linear if way == 'exact' or plain() else partial(linear, way, pack(x, way))


def linear(way, held, x, weight, bias=None):
    out = PackedLinear.apply(x, weight, way, *held)
    return out if bias is None else out + bias
