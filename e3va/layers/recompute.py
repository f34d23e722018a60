"""Run something again in backward and keep of its input a packed form alone: exact, bf16 or int8."""
import contextlib
import dataclasses
from typing import Callable

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint, get_device_states, set_device_states


@dataclasses.dataclass(frozen=True)
class Form:
    """How a tensor is held: `pack` gives a tuple of tensors, `unpack(dtype, *packed)` the tensor again."""

    pack: Callable
    unpack: Callable


def compact(x):
    """x itself, or a copy where it is a view that keeps more alive: a Swin cuts its branch out of padded windows."""
    return x.clone() if x.untyped_storage().nbytes() > x.nbytes else x,


def to_bf16(x):
    return x.bfloat16() if x.element_size() >= 4 else compact(x)[0],


def to_int8(x):
    """With a scale for each token; the error is at most half a step of 1/127 of the token's largest value."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (x / scale).round_().to(torch.int8), scale


FORMS = dict(
    exact=Form(compact, lambda dtype, x: x),
    bf16=Form(to_bf16, lambda dtype, x: x.to(dtype)),
    int8=Form(to_int8, lambda dtype, x, scale: (x * scale).to(dtype)))


class Surroundings:
    """The autocast setting, and on request the random state, in which something is computed and computed again."""

    def __init__(self, x, draws=False):
        kind = x.device.type
        self.autocast = dict(device_type=kind, dtype=torch.get_autocast_dtype(kind),
                             enabled=torch.is_autocast_enabled(kind))
        self.random = (torch.get_rng_state(), *get_device_states(x)) if draws else None

    @contextlib.contextmanager
    def again(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.autocast(**self.autocast))
            if self.random is not None:
                state, devices, states = self.random
                stack.enter_context(torch.random.fork_rng(devices))
                torch.set_rng_state(state)
                set_device_states(devices, states)
            yield


def traced():
    """Whether torch.compile decides what is kept, or a trace is made, which cannot be saved with our functions."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def plain():
    """Whether to leave everything to autograd: nothing is recorded, or `traced`."""
    return not torch.is_grad_enabled() or traced()


def hold(form, x):
    """The packed form of x where a backward may need it."""
    return () if plain() else form.pack(x.detach())


def again(run, form, held, x, parameters, draws=False):
    """run(x), keeping of x only `held`, its packed form; what lies inside is computed again.

    run(x) is a tensor or several, or what goes along with them (heights and widths); of a tuple comes a list. torch's
    own checkpointing does it where x itself is kept.

    Args:
        parameters: those that run(x) may use; of them the trained ones get gradients.
        draws (bool): run(x) draws random numbers, the second time the same.
    """
    if plain():
        return run(x)
    if form is FORMS['exact']:
        return checkpoint(run, x, use_reentrant=False, preserve_rng_state=draws)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    out = Again.apply(run, form, draws, x, *trained, *held)
    return list(out) if isinstance(out, tuple) else out


class Again(Function):
    """See `again`; behind x come the trained parameters and what is held."""

    @staticmethod
    def forward(ctx, run, form, draws, x, *tensors):
        ctx.run, ctx.form, ctx.dtype, ctx.surroundings = run, form, x.dtype, Surroundings(x, draws)
        ctx.save_for_backward(*tensors)
        out = run(x)
        return out if isinstance(out, torch.Tensor) else tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        _, _, _, needs_x, *needs = ctx.needs_input_grad
        parameters = [tensor for tensor, needed in zip(ctx.saved_tensors, needs) if needed]
        held = ctx.saved_tensors[len(parameters):]
        with ctx.surroundings.again(), torch.enable_grad():
            x = ctx.form.unpack(ctx.dtype, *held).detach().requires_grad_()
            out = ctx.run(x)
            outs = (out,) if isinstance(out, torch.Tensor) else tuple(out)
        given = [(out, gradient) for out, gradient in zip(outs, gradients)
                 if isinstance(out, torch.Tensor) and out.requires_grad]
        if not given:                                                   # what may train outside of a block is not in it
            return (None,) * len(ctx.needs_input_grad)
        # that of x also where nobody asks for it: torch 2.13's GroupNorm crashes without (CPU, maps of channels last)
        of_x, *found = torch.autograd.grad([out for out, _ in given], [x, *parameters],
                                           [gradient for _, gradient in given], allow_unused=True)
        return None, None, None, of_x if needs_x else None, *found, *[None] * len(held)
