"""The product with a frozen weight that has trained values in some places, and the gradient of these alone."""
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def put(weight, index, values):
    """A copy of a weight with `values` at the flat places `index`."""
    return weight.flatten().scatter(0, index.flatten().long(), values.flatten().to(weight.dtype)).view_as(weight)


class Put(torch.autograd.Function):
    """`put`, and the gradient of the values alone."""

    @staticmethod
    def forward(ctx, weight, index, values):
        ctx.save_for_backward(index)
        return put(weight, index, values)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        index, = ctx.saved_tensors
        return None, None, gradient.flatten()[index.long()]


class SparseProduct(torch.autograd.Function):
    """The linear layer, or the convolution of a geometry, by a frozen weight with values put into it.

    Backward forms the gradient of the weight's `columns` (of all for None, and for a convolution), by the product that
    autograd does for the stock layer, and keeps the entries at `index`. Of the input only these columns are saved. A
    buffer of at most the weight's size is alive for one layer at a time, none afterwards. A linear layer's x is (N, C).
    """

    @staticmethod
    def forward(ctx, x, weight, index, values, bias, columns, *geometry):
        kept = x if columns is None else x.index_select(-1, columns)
        ctx.save_for_backward(kept, weight, index, values, columns)
        ctx.geometry = geometry
        whole = put(weight, index, values).to(x.dtype)
        return F.conv2d(x, whole, bias, *geometry) if geometry else F.linear(x, whole, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, index, values, columns = ctx.saved_tensors
        for_x, _, _, for_values, for_bias = ctx.needs_input_grad[:5]
        places = index.long()
        if ctx.geometry:
            stride, padding, dilation, groups = ctx.geometry
            of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
                gradient, x, put(weight, index, values).to(x.dtype), [len(weight)], stride, padding, dilation, False,
                [0, 0], groups, [for_x, for_values, for_bias])
        else:
            of_x = of_weight = of_bias = None
            if for_x:
                of_x = gradient.mm(put(weight, index, values).to(x.dtype))
            if for_values:
                of_weight = gradient.t().mm(x)
                if columns is not None:
                    inputs = weight.shape[1]
                    places = places // inputs * len(columns) + torch.searchsorted(columns, index % inputs)
            if for_bias:
                of_bias = gradient.sum(0)
        of_values = of_weight.flatten()[places].to(values.dtype) if for_values else None
        return of_x, None, None, of_values, of_bias, None, *[None] * len(ctx.geometry)
