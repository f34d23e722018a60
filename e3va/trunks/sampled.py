"""The gradient of some images of a batch alone goes through the trunk; of the others nothing is kept.

Neck and heads learn from every image, the trunk from a share s of them: their gradient is taken 1/s times, so that its
mean over the draws is that of all. What is drawn is how many, the batch's first floor(B s + u) with u uniform in
[0, 1); which image comes first is the sampler's draw. Source: stochastic backpropagation (Cheng et al., CVPR 2022,
arXiv 2203.16755; Fang et al., NeurIPS 2022, arXiv 2210.00129), there of tokens and without the factor.
"""
import contextlib
import math
from functools import partial

import torch
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from ..surgery import called, unwrap, wrap


def sample_backward(trunk, parts, share):
    """Let a trunk keep of each batch a share of the images for backward.

    Args:
        parts (Family): of the trunk, or None.
        share (float): above 0, below 1.

    Raises:
        ValueError: batch norms of the trunk train, whose statistics are those of the whole batch.
    """
    trained = [name for name, module in trunk.named_modules() if isinstance(module, _BatchNorm)
               and any(parameter.requires_grad for parameter in module.parameters(recurse=False))]
    if trained:
        raise ValueError(f'backward={share}: the batch norm {trained[0]} of {type(trunk).__name__} trains, and its '
                         'statistics are of the whole batch, which would be split: leave it out')
    entry = parts.ENTRY(trunk) if parts else 'forward'
    wrap(trunk, entry, partial(forward, share))


def by_chance(images, share):
    return math.floor(images * share + float(torch.rand(())))


def most(images, share):
    return math.ceil(images * share)


draw = by_chance


@contextlib.contextmanager
def drawing(count):
    """Have count(images, share) of a batch's images drawn in this context: `most` is what memory must do for.

    Inside another such context that one's stay.
    """
    global draw
    before = draw
    draw = count if before is by_chance else before
    try:
        yield
    finally:
        draw = before


def forward(share, before, trunk, images, *args, **options):
    """The trunk's outputs, by what stood in this function's place; see `surgery.wrap`."""
    run = called(before, trunk)
    if not (trunk.training and torch.is_grad_enabled()):
        return run(images, *args, **options)
    count = draw(len(images), share)
    if count >= len(images):
        return run(images, *args, **options)
    with torch.no_grad():
        others = run(images[count:], *args, **options)
    if not count:                                                       # DDP waits for gradients, and here comes none
        idle = {parameter for module in trunk.modules() for parameter in getattr(module, 'undrawn', ())}
        trained = [parameter for parameter in trunk.parameters() if parameter.requires_grad and parameter not in idle]
        return tree_map(lambda out: Still.apply(out, *trained) if isinstance(out, torch.Tensor) else out, others)
    return tree_map(partial(joined, 1 / share), run(images[:count], *args, **options), others)


def joined(factor, some, others):
    """The outputs of all images, those whose gradient is taken `factor` times first."""
    if not isinstance(some, torch.Tensor):
        return some
    return torch.cat([Times.apply(some, factor), others])


class Times(Function):
    """x, whose gradient is taken a number of times."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class Still(Function):
    """x, of which the parameters have a gradient of zero."""

    @staticmethod
    def forward(ctx, x, *parameters):
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, *map(torch.zeros_like, ctx.saved_tensors)


def whole_backward(trunk):
    """Undo `sample_backward`."""
    unwrap(trunk, forward)
