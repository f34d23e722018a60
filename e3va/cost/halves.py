"""The two halves of a training step, counted for a plan: the trunk, and what is behind it.

The trunk runs on fake tensors, shapes and storages without values, at the true size, forward and backward: counted like
real ones, they take no memory and no time. The heads decide by values (which boxes, how many), so neck and heads run on
real tensors at the true size, with noise in the place of the trunk's maps; their products, nearly all of their time,
give noise out too.
"""
import copy
import weakref

import torch
from mmengine.runner import set_random_seed
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from .live import LiveBytes, unique_bytes
from .saved import saved_bytes
from .step import Step, autocast

ATEN = torch.ops.aten
PRODUCTS = (ATEN.convolution, ATEN.convolution_backward, ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm)


def trunk_step(trunk, shape, dtype):
    """Bytes of the forward and backward of a trunk on images of a shape, computing nothing.

    Returns:
        dict: `maps`, what it gives out (shape, dtype, requires_grad), their `tree`, their `sizes` in bytes, and whether
        each is `kept` for the trunk's own backward; bytes `saved`; the most at once in `forward` and in `backward`;
        between them, without maps that are not kept, what is `alive` while the images are, and `ready` when not.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)           # constants that a forward makes
    trunk = copy.deepcopy(trunk, {id(tensor): mode.from_tensor(tensor)
                                  for tensor in (*trunk.parameters(), *trunk.buffers())})
    if hasattr(trunk, 'tuning'):
        trunk.tuning.hooked = True                              # what a method's hook does costs nothing
    with mode, LiveBytes() as live:
        outs, image = [], torch.empty(shape)
        with autocast('cpu', dtype):
            saved = saved_bytes(lambda: outs.append(trunk(image)), trunk)
        outs, tree = tree_flatten(outs.pop())
        found = dict(maps=[(tuple(out.shape), out.dtype, out.requires_grad) for out in outs], tree=tree, saved=saved,
                     sizes=[out.untyped_storage().nbytes() for out in outs], forward=live.peak)
        ends = [torch.autograd.graph.get_gradient_edge(out) for out in outs if out.requires_grad]
        held = [weakref.ref(out.untyped_storage()) for out in outs]
        outs = None
        found.update(kept=[reference() is not None for reference in held], alive=live.current)
        image = None
        found['ready'] = live.peak = live.current
        torch.autograd.backward(ends, [torch.empty(shape, dtype=kind) for shape, kind, end in found['maps'] if end])
        return dict(found, backward=live.peak)


def rest_step(model, data, dtype, maps, tree):
    """Bytes of the forward and backward of a model, on real tensors, with noise of its trunk's form as its trunk.

    Returns:
        dict: bytes `saved`, whether each map is `kept` for backward, the most at once for making the `images`, and
        without these and the maps in `forward` and `backward`, and bytes of the `gradients`.
    """
    set_random_seed(0)
    model.backbone = Noise(maps, tree)
    held = [weakref.ref(value.untyped_storage()) for value in model.backbone.buffers()]
    with Step(model, data, dtype) as step, Products(), LiveBytes() as live:
        images = []

        def begin(*_):
            images.extend((live.peak, live.current))
            live.peak = live.current

        model.backbone.register_forward_pre_hook(begin)
        loss = []
        saved = saved_bytes(lambda: loss.append(step.forward()), model)
        found = dict(saved=saved, kept=[reference() is not None for reference in held], images=images[0],
                     forward=live.peak - images[1])
        live.peak = live.current
        step.backward(loss.pop())
        gradients = unique_bytes(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    return dict(found, backward=live.peak, gradients=gradients)


class Noise(nn.Module):
    """Stands for a trunk: the first image gets maps of the given form, of random values; they are then let go."""

    def __init__(self, maps, tree):
        super().__init__()
        self.tree = tree
        for i, (shape, dtype, trained) in enumerate(maps):      # buffers, as what is saved does not count these
            self.register_buffer(f'map{i}', noise(shape, dtype).requires_grad_(trained))

    def forward(self, image):
        outs = list(self.buffers())
        self._buffers.clear()
        return tree_unflatten(outs, self.tree)


class Products(TorchDispatchMode):
    """Convolutions and matrix products give noise of the right form at once."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(torch.Tensor, lambda given: given.to('meta'), (args, kwargs or {}))
        return tree_map_only(torch.Tensor, lambda out: noise(out.shape, out.dtype), func(*args, **kwargs))


def noise(shape, dtype):
    """Values as of a new network: small, so that boxes stay near their anchors."""
    return torch.empty(shape, dtype=dtype).normal_(std=0.01)
