"""x (W + s B A)^T by the sum of the weights, in forward and backward, where that is less work than thin products.

RunLoRA (Cherniuk et al., ACL 2025, arXiv 2312.03415) chooses by counting products: B A costs r in out, its factors on
T tokens r T (in + out). In 16 bits the sum would lose small entries of B A, so it is made of wider floats alone.
"""
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .packed import pack, unpack
from .recompute import traced


def pays(x, weight, width):
    """Whether the sum is less work for x (..., in), the smallest adapted slice of the outputs being of `width`."""
    if traced() or torch.is_autocast_enabled(x.device.type):
        return False
    size = weight.shape[1]
    return x.dtype == weight.dtype and x.element_size() >= 4 and x.numel() // size * (size + width) > weight.numel()


def total(weight, scale, of, slices, factors):
    """W with s B A on each adapted of its `of` equal slices, a tensor of its own; without autograd alone."""
    weight = weight.clone()
    for i, down, up in zip(slices, factors, factors[len(slices):]):
        weight.unflatten(0, (of, -1))[i].addmm_(up, down, alpha=scale)
    return weight


def summed(x, weight, bias, way, scale, of, slices, *factors):
    """The output for x (..., in); `way` is how x is kept, see `layers.packed`; the factors are downs, then ups.

    Gradients are those of x and the factors; W and the bias are frozen. The sum is made again in backward.
    """
    held = pack(x, way) if torch.is_grad_enabled() else ()
    return SummedLinear.apply(x, weight, bias, way, scale, of, slices, held, *factors)


class SummedLinear(Function):
    """See `summed`."""

    @staticmethod
    def forward(ctx, x, weight, bias, way, scale, of, slices, held, *factors):
        ctx.save_for_backward(weight, *factors, *held)
        ctx.options = way, scale, of, slices
        return F.linear(x, total(weight, scale, of, slices, factors), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        way, scale, of, slices = ctx.options
        half = len(slices)
        weight, *rest = ctx.saved_tensors
        downs, ups, held = rest[:half], rest[half:2 * half], rest[2 * half:]
        x = unpack(held, way, weight.dtype).flatten(0, -2)
        flat = gradient.flatten(0, -2)
        pieces = [flat.unflatten(1, (of, -1))[:, i] for i in slices]
        inner = torch.cat([piece @ up for piece, up in zip(pieces, ups)], 1).mul_(scale)
        of_downs = (inner.T @ x).split([len(down) for down in downs])
        products = (x @ torch.cat(downs).T).mul_(scale).split([len(down) for down in downs], 1)
        of_ups = [piece.T @ product for piece, product in zip(pieces, products)]
        of_x = gradient @ total(weight, scale, of, slices, downs + ups) if ctx.needs_input_grad[0] else None
        return of_x, *[None] * 7, *of_downs, *of_ups
