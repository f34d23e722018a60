"""What the highway keeps between forward and backward.

Between two joins the highway is a sum, e' = e + sum of A(f): every adapter there receives the same gradient, that of
e', and e receives it unchanged. So the backward needs only the adapters' inputs f, in any order; what lies inside an
adapter is computed again. The inputs can be held in fewer bits, or not at all: then the frozen blocks run again, and
each input is dropped as soon as its adapter has its gradient.
"""
import dataclasses
from typing import Optional

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..layers.recompute import FORMS, Surroundings, plain
from ..trunks.gathered import gathered
from .adapter import trained_of


@dataclasses.dataclass(frozen=True)
class Mode:
    """Forms of the adapters' inputs (None: they are computed again) and of the stream at joins and merges."""

    inputs: Optional[str]
    stream: str


MODES = dict(exact=Mode('exact', 'exact'), bf16=Mode('bf16', 'bf16'), int8=Mode('int8', 'bf16'),
             stream=Mode(None, 'exact'), stream_bf16=Mode(None, 'bf16'))


@dataclasses.dataclass
class Segment:
    """Blocks of the trunk up to the next join or merge, with the pair of adapters beside each of them.

    A pair is {'attn' or 'mlp': adapter}; one that was pruned is missing, one that serves elsewhere too is in both.
    """

    trunk: torch.nn.Module
    shape: tuple
    pairs: list
    blocks: list

    def __call__(self, c, l, mode):
        """Run the highway c and the trunk's tokens l, each (B, ..., C), to the end of the segment."""
        if plain():
            return self.run(c, l, own=self.side.beside(self.blocks[0]) and not torch.is_grad_enabled())
        return Highway.apply(self, mode, c, l, *self.trained())

    @property
    def side(self):
        return self.trunk.e3va

    def trained(self):
        return list(dict.fromkeys(parameter for pair in self.pairs for parameter in trained_of(pair)))

    def read(self, name, block, l):
        """(f, l'): a branch's output, (B, ..., C), and the trunk's tokens behind it."""
        parts = self.trunk.tuning.parts
        with torch.no_grad():                                           # the decorator breaks torch.compile's graph
            f, l = (parts.attend if name == 'attn' else parts.feed)(block, l, self.shape, self.side.tap)
        return f.movedim(parts.AXIS, -1), l

    def names(self, block):
        return self.trunk.tuning.parts.names(block)

    def run(self, c, l, keep=None, own=False):
        """The two streams' new values; `keep` is called with each branch output, `own` lets c be changed in place."""
        side, whole = self.side, self.side.skip and not self.side.beside(self.blocks[0])     # whole: c is e itself
        c = c.contiguous() if own else c.clone(memory_format=torch.contiguous_format)
        for block, pair in zip(self.blocks, self.pairs):
            onwards = None
            with gathered(block):
                for name in self.names(block):
                    f, l = self.read(name, block, l)
                    onwards = side.add(name, c, pair, f, onwards)
                    if whole:
                        c += f
                    if keep:
                        keep(f)
                    del f                                               # before the next branch takes its memory
        return c.add_(side.biases(self.pairs)), l

    def reread(self, l):
        """The branch outputs of each block, once more."""
        for block in self.blocks:
            inputs = {}
            with gathered(block):
                for name in self.names(block):
                    inputs[name], l = self.read(name, block, l)
            yield inputs

    def unpacked(self, kept, form, dtype):
        """The branch outputs of each block from their packed forms, which follow one another in `kept`."""
        names = [self.names(block) for block in self.blocks]
        size, j = len(kept) // sum(map(len, names)), 0
        for branches in names:
            yield {name: form.unpack(dtype, *kept[j + k * size:j + (k + 1) * size])
                   for k, name in enumerate(branches)}
            j += len(branches) * size


class Highway(Function):
    """A segment (equation 8); trained are the adapters, and whatever c comes from."""

    @staticmethod
    def forward(ctx, segment, mode, c, l, *parameters):
        ctx.segment, ctx.dtype, ctx.form, kept = segment, l.dtype, FORMS[mode.inputs or mode.stream], []
        ctx.streams = mode.inputs is None
        ctx.surroundings = Surroundings(l, ctx.streams)
        if parameters and ctx.streams:
            kept += ctx.form.pack(l)
        c, l = segment.run(c, l, (lambda f: kept.extend(ctx.form.pack(f))) if parameters and not ctx.streams else None)
        ctx.save_for_backward(*parameters, *kept)
        ctx.mark_non_differentiable(l)
        return c, l

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, _):
        count, saved, segment = len(ctx.needs_input_grad) - 4, ctx.saved_tensors, ctx.segment
        trained, kept = segment.trained(), saved[count:]
        if len(trained) != count or not all(map(same, saved, trained)):
            raise RuntimeError('the adapters were given other parameters, or other ones were frozen, between forward '
                               'and backward: do it before the forward or after the backward')
        if not trained:
            return None, None, gradient, None
        g = gradient.reshape(-1, gradient.shape[-1])
        total, found = g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32)), {}
        with ctx.surroundings.again():
            if ctx.streams:
                inputs = segment.reread(ctx.form.unpack(ctx.dtype, *kept))
            else:
                inputs = segment.unpacked(kept, ctx.form, ctx.dtype)
            for pair, outputs in zip(segment.pairs, inputs):
                for parameter, value in segment.side.gradients(pair, outputs, g, total):
                    found[parameter] = found[parameter] + value if parameter in found else value
        return None, None, gradient, None, *(found[parameter] for parameter in trained)


def same(a, b):
    """Whether two tensors are one in memory; autograd gives out what it has saved as another object."""
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata
