"""A layer of whose frozen weight some entries train: their values are a parameter of their own."""
import copy

import torch
from torch import nn
from torch.nn import functional as F

from .adopted import AdoptedConv2d, AdoptedLinear
from .sparse_product import Put, SparseProduct, put

TILE = 16       # of columns together: their product has the bits of the whole one (MKL; fewer go by another kernel)


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

    columns = None                                                      # see `SparseLinear.arrange`

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
            self.arrange()

    @torch.no_grad()
    def select(self, index):
        """Let the entries at the flat places `index` train, from the weight's values on."""
        self.index.copy_(index.view_as(self.index))
        self.refresh()
        self.arrange()

    @torch.no_grad()
    def refresh(self):
        """Take the values from the weight."""
        if self.values is not None:
            self.values.copy_(self.weight.flatten()[self.index.long()])

    def arrange(self):
        """Prepare what follows from `index`, which has changed."""

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
        if torch.jit.is_tracing():                                      # a trace cannot be saved with our functions
            whole = self.whole().to(x.dtype)
            return F.conv2d(x, whole, bias, *geometry) if geometry else F.linear(x, whole, bias)
        if geometry:
            return SparseProduct.apply(x, self.weight, self.index, self.values, bias, None, *geometry)
        rows = x.reshape(-1, x.shape[-1])       # so that the function's output is no view: an in-place ReLU may follow
        out = SparseProduct.apply(rows, self.weight, self.index, self.values, bias, self.columns)
        return out.view(*x.shape[:-1], len(self.weight))

    def merged(self):
        """A layer of the old class with the whole weight."""
        layer = self.empty()
        layer.weight = nn.Parameter(self.whole().detach(), requires_grad=self.weight.requires_grad)
        layer.bias = self.bias
        return layer.train(self.training)


class SparseLinear(SparseWeight, AdoptedLinear):
    """A linear layer of whose weight some entries train; see `SparseWeight`.

    The gradient of an entry of column c needs feature c of the input and no other. By their gradients neurons select
    the same few inputs (in a ViT-S/14 on blood cells 5 % of them for K = 1), so backward is handed these alone.
    """

    @torch.no_grad()
    def arrange(self):
        """Note the `columns` that backward needs, ascending, filled up with others to whole tiles.

        None: all, where nothing is selected yet, or more than half would be kept beside an input that other layers
        may keep whole.
        """
        self.columns = None
        if not self.index.is_meta and self.selected:
            read = torch.zeros(self.in_features, device=self.index.device)
            read[self.index.long() % self.in_features] = 1
            count = -(-int(read.sum()) // TILE) * TILE
            if 2 * count <= self.in_features:
                self.columns = read.sort(descending=True, stable=True).indices[:count].sort().values

    def _apply(self, *args, **options):                                 # .to(): columns are no buffer, as their number
        super()._apply(*args, **options)                                # changes, and EMAHook copies buffers one by one
        self.arrange()
        return self

    def forward(self, x):
        return super().forward(x) if self.weight.requires_grad else self.product(x)

    def empty(self):
        return self.plain(self.in_features, self.out_features, self.bias is not None, device='meta')


class SparseConv2d(SparseWeight, AdoptedConv2d):
    """A convolution of whose weight some entries train; see `SparseWeight`."""

    def forward(self, x):
        x = self.padded(x)
        if self.weight.requires_grad:
            return F.conv2d(x, self.weight, self.bias, *self.geometry)
        return self.product(x, *self.geometry)


class SparseAttention(SparseWeight, nn.MultiheadAttention):
    """torch's attention, of which entries of the fused q, k, v weight train, and of its `out_proj`, if that is sparse.

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
        places = [(vars(self), 'in_proj_weight', self)]
        if isinstance(self.out_proj, SparseWeight):                     # `targets` may leave it out
            places.append((vars(self.out_proj), 'weight', self.out_proj))
        for attributes, name, layer in places:                          # found before the parameters of these names
            attributes[name] = (layer.whole() if torch.jit.is_tracing() else
                                Put.apply(getattr(layer, name), layer.index, layer.values))
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
