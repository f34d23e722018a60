"""FourierFT (Gao et al., ICML 2024, arXiv 2405.03003): W + alpha Re(IDFT2(F)), F zero but for n learned entries.

Where these entries are follows from a seed and the weight's shape, so that layers of one shape share the places.
Defaults and places are those of HF PEFT: `n` is its `n_frequency`, `scale` its `scaling`, `seed` its `random_loc_seed`.
"""
import torch
from torch import nn

from ..layers import SlicedLinear
from ..registry import METHODS
from ..surgery import replace
from .base import Method, choice, integer, layers, number, places


class FourierLinear(SlicedLinear):
    """W + scale Re(IDFT2(F)) on slices of the outputs, each with a spectrum of its own.

    The change has full rank, so the forward makes a weight of the layer's size; there is no thinner path.

    Shapes: `spectrum` (slices, n); `places` (n,), flat indices into (width, in), follow from the seed, are not saved.
    """

    def __init__(self, old, n, scale, seed, init, slices, of):
        super().__init__(old, slices, of)
        self.scale = scale
        places = torch.randperm(self.width * self.in_features, generator=torch.Generator().manual_seed(seed))[:n]
        self.register_buffer('places', places.to(old.weight.device), persistent=False)
        spectrum = torch.randn(len(slices), n) if init == 'normal' else torch.zeros(len(slices), n)
        self.spectrum = nn.Parameter(spectrum.to(old.weight))

    def deltas(self):
        dense = self.spectrum.new_zeros(len(self.spectrum), self.width * self.in_features, dtype=torch.float32)
        dense = dense.index_copy(1, self.places, self.spectrum.float()) # the transform has no half precision
        return self.scale * torch.fft.ifft2(dense.unflatten(1, (self.width, -1))).real


@METHODS.register_module()
class FourierFT(Method):
    """Sparse spectra added to linears.

    Refused for want of linears: ConvNeXts whose MLPs are convolutions of 1x1; on mmsegmentation's ViT all roles but
    'fc1' and 'fc2', as torch computes its attention past any layer in its place.

    Args:
        n (int): learned entries of each weight (a slice of a fused one counts as one). 3,000 in the paper on ViT-B.
        scale (float): alpha; 300 in the paper on ViT.
        init (str): of the entries. 'normal', N(0, 1) as in the paper: training does not start at the trunk, and a
            narrow layer is drowned, for the change has a standard deviation of scale sqrt(n / 2) / (width in).
            'zero' starts at the trunk.
        roles (sequence of str): the linears that are adapted: 'q', 'k', 'v', 'proj', 'fc1', 'fc2'.
            Default: q and v; in a trunk of no known family all but the classifier's.
        targets (str or sequence of str): the linears that are adapted, in any module; see `LoRA`.
        seed (int): of the places of the entries.
        train_out_norms (bool): see `Method`.
    """

    mergeable = True
    linear = {'spectrum': 0.}
    needs_family = False

    def __init__(self, n=1000, scale=150., init='normal', roles=None, seed=777, train_out_norms=False,
                 targets=None):
        super().__init__(train_out_norms)
        self.n = integer('n', n)
        self.scale = number('scale', scale)
        self.init = choice('init', init, ('normal', 'zero'))
        self.roles, self.targets = places(roles, targets)
        self.seed = integer('seed', seed, low=0)
        self.starts_at_trunk = init == 'zero'

    def apply(self, trunk, parts):
        for name, old, slices, of in layers(trunk, parts, self):
            integer('n', self.n, high=old.in_features * (old.out_features // of))
            replace(trunk, name, FourierLinear(old, self.n, self.scale, self.seed, self.init, slices, of))
