"""A layer of whose frozen weight some entries train: their values are a parameter of their own."""
import copy

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .adopted import AdoptedLinear


class SparseWeight:
    """What the linear layer, the convolution and torch's attention share; it comes first among the bases.

    The weight stays as it is, under its stock name. In the forward pass `values` take the places `index` of a copy,
    which lives as long as the product. So an optimizer, a decay or an average of `values` acts on these entries as it
    would inside the weight, and on no other.

    Before something is selected every place is the first entry of the weight, which then has its own value.
    Where the weight itself trains (a selection's gradients, the reference's masks) the layer is the stock one.

    Shapes: `values` (out, n) or (1, n); `index` the same, int32, places in the flattened weight. A selection has no
    place twice.
    """

    def sparse(self, rows, columns, dense=False):
        """Have rows x columns places, nothing selected; `dense`: no values, the weight itself is to train."""
        self.register_buffer('index', torch.zeros(rows, columns, dtype=torch.int32, device=self.weight.device))
        self.values = None if dense else nn.Parameter(self.weight.detach().new_zeros(rows, columns))
        self.refresh()

    @torch.no_grad()
    def reshape(self, shape):
        """Have values of another shape; the parameter and the buffer stay the same objects."""
        if self.index.shape != shape:
            self.index.data = self.index.new_zeros(shape)
            if self.values is not None:
                self.values.data, self.values.grad = self.values.new_zeros(shape), None

    @torch.no_grad()
    def select(self, index):
        """Let the entries at the flat places `index` train, from the weight's values on."""
        self.index.copy_(index.view_as(self.index))
        self.refresh()

    @torch.no_grad()
    def refresh(self):
        """Take the values from the weight."""
        if self.values is not None:
            self.values.copy_(self.weight.flatten()[self.index.long()])

    @property
    def selected(self):
        """Whether a selection is there."""
        return len(self.index.unique()) == self.index.numel()

    def whole(self):
        """The weight with the values in their places."""
        return self.weight if self.values is None else put(self.weight, self.index, self.values)

    def product(self, x, *geometry):
        """The layer's output for x; of a convolution with its stride, padding, dilation and groups."""
        bias, kind = self.bias, x.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
        return SparseProduct.apply(x, self.weight, self.index, self.values, bias, *geometry)

    def merged(self):
        """A layer of the old class with the whole weight."""
        layer = self.empty()
        layer.weight = nn.Parameter(self.whole().detach(), requires_grad=self.weight.requires_grad)
        layer.bias = self.bias
        return layer.train(self.training)


class SparseLinear(SparseWeight, AdoptedLinear):
    """A linear layer of whose weight some entries train; see `SparseWeight`."""

    def forward(self, x):
        return super().forward(x) if self.weight.requires_grad else self.product(x)

    def empty(self):
        return self.plain(self.in_features, self.out_features, self.bias is not None, device='meta')


class SparseConv2d(SparseWeight, nn.Conv2d):
    """A convolution of whose weight some entries train; see `SparseWeight`."""

    def __init__(self, old):
        nn.Module.__init__(self)
        if old.padding_mode != 'zeros' or isinstance(old.padding, str):
            raise ValueError(f'entries of a convolution are trained with zeros around the image, given in numbers, not '
                             f'with padding={old.padding!r}, padding_mode={old.padding_mode!r}; take another trunk')
        for name in (*nn.Conv2d.__constants__, 'transposed', '_reversed_padding_repeated_twice'):
            if hasattr(old, name):
                setattr(self, name, getattr(old, name))
        self.weight, self.bias = old.weight, old.bias
        self.plain = type(old)
        self.train(old.training)

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation, self.groups

    def forward(self, x):
        return super().forward(x) if self.weight.requires_grad else self.product(x, *self.geometry)

    def empty(self):
        return self.plain(self.in_channels, self.out_channels, self.kernel_size, *self.geometry,
                          self.bias is not None, device='meta')


class SparseAttention(SparseWeight, nn.MultiheadAttention):
    """torch's attention, of which entries of the fused q, k, v weight train, and of its `out_proj`, a `SparseLinear`.

    It hands both weights to a function of torch, so this one keeps whole copies until backward.
    """

    def __init__(self, old):
        nn.Module.__init__(self)
        take(self, old)
        self.plain = type(old)

    @property
    def weight(self):
        return self.in_proj_weight

    def forward(self, *inputs, **options):
        if self.weight.requires_grad:
            return super().forward(*inputs, **options)
        places = [(vars(self), 'in_proj_weight', self), (vars(self.out_proj), 'weight', self.out_proj)]
        for attributes, name, layer in places:                          # found before the parameters of these names
            attributes[name] = Put.apply(getattr(layer, name), layer.index, layer.values)
        try:
            return super().forward(*inputs, **options)
        finally:
            for attributes, name, _ in places:
                del attributes[name]

    def merged(self):
        """Torch's own, with the whole weight; `out_proj` is merged by itself."""
        layer = self.plain.__new__(self.plain)
        take(layer, self)
        del layer.values, layer.index, layer.plain
        layer.in_proj_weight = nn.Parameter(self.whole().detach(), requires_grad=self.weight.requires_grad)
        return layer


def take(new, old):
    """Give the module `new` all that `old` has: the same parameters and children."""
    vars(new).update((name, copy.copy(value)) for name, value in vars(old).items())


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

    Backward does the products that autograd does for the stock layer, so the gradients have the same bits; of the
    weight's it keeps the entries at `index`. One buffer of the weight's size is alive at a time, none afterwards.
    """

    @staticmethod
    def forward(ctx, x, weight, index, values, bias, *geometry):
        ctx.save_for_backward(x, weight, index, values)
        ctx.geometry = geometry
        whole = put(weight, index, values).to(x.dtype)
        return F.conv2d(x, whole, bias, *geometry) if geometry else F.linear(x, whole, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, index, values = ctx.saved_tensors
        for_x, _, _, for_values, for_bias = ctx.needs_input_grad[:5]
        if ctx.geometry:
            stride, padding, dilation, groups = ctx.geometry
            of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
                gradient, x, put(weight, index, values).to(x.dtype), [len(weight)], stride, padding, dilation, False,
                [0, 0], groups, [for_x, for_values, for_bias])
        else:
            of_x = of_weight = of_bias = None
            rows = gradient.reshape(-1, gradient.shape[-1])
            if for_x:
                of_x = rows.mm(put(weight, index, values).to(x.dtype)).view_as(x)
            if for_values:
                of_weight = rows.t().mm(x.reshape(-1, x.shape[-1]))
            if for_bias:
                of_bias = rows.sum(0)
        of_values = of_weight.flatten()[index.long()].to(values.dtype) if for_values else None
        return of_x, None, None, of_values, of_bias, *[None] * len(ctx.geometry)
