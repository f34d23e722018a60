"""A linear layer of which some slices of the outputs get a trained addition."""
import torch

from .delta_linear import DeltaLinear


class SlicedLinear(DeltaLinear):
    """W + delta on some of the `of` equal slices of the outputs, e.g. q and v of a fused q, k, v layer.

    The method states `deltas()`; an adapted slice is a layer of its own, (width, in), with width = out / of.
    """

    def __init__(self, old, slices=(0,), of=1):
        super().__init__(old)
        self.slices, self.of = tuple(slices), of

    @property
    def width(self):
        """Outputs of a slice."""
        return self.out_features // self.of

    def deltas(self):
        """What is added to the weights of the adapted slices, in their order: (len(slices), width, in)."""
        raise NotImplementedError

    def delta(self):
        added = dict(zip(self.slices, self.deltas()))
        none = self.weight.new_zeros(self.width, self.in_features)
        return torch.cat([added.get(i, none).to(none.dtype) for i in range(self.of)])

    def add(self, out, added):
        """`out` (..., out) with the list `added`, a (..., width) for each adapted slice, on these slices."""
        if len(added) == self.of:
            return out + (added[0] if self.of == 1 else torch.cat(added, dim=-1))
        added = dict(zip(self.slices, added))
        return torch.cat([piece + added[i] if i in added else piece
                          for i, piece in enumerate(out.chunk(self.of, dim=-1))], dim=-1)
