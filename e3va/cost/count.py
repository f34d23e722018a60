"""What needs no clock: the bytes and operations of one training step, and of one inference of a trunk."""
import contextlib

import torch
from mmengine.runner import set_random_seed
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from .live import LiveBytes, unique_bytes
from .saved import saved_bytes
from .step import Step, infer

CPU_ATTENTION = {                       # operator -> formula of the arguments' shapes; torch's own list is CUDA's
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        lambda q, k, v, *_, **options: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda gradient, q, k, v, *_, **options: sdpa_backward_flop_count(gradient, q, k, v)}


def flops():
    """torch's counter of the operations of everything that runs; a multiplication with its addition is two."""
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    counter.mod_tracker = contextlib.nullcontext()              # its sums by module do not survive custom functions
    counter.mod_tracker.parents = {'Global'}
    return counter


def training(model, data, dtype):
    """Bytes and operations of one training step.

    Returns:
        dict: see `table.COLUMNS`.
    """
    set_random_seed(0)                      # the same boxes are sampled and the same paths dropped, in each count
    with Step(model, data, dtype) as step, LiveBytes() as live:
        state = [value for values in step.optimizer.state.values() for value in values.values()]
        there = unique_bytes([*model.parameters(), *model.buffers(), *state])
        loss = step.forward()
        alive = live.current
        step.backward(loss)
        del loss
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        kept = unique_bytes([*model.parameters(), *model.buffers(), *gradients, *state])
        step.update()
        peak = there + live.peak
        del gradients, state
    if step.device == 'cuda':
        with Step(model, data, dtype) as step:
            torch.cuda.reset_peak_memory_stats()
            step.run()
            peak = torch.cuda.max_memory_allocated()
    set_random_seed(0)
    with Step(model, data, dtype) as step, flops() as counter:
        loss = []
        saved = saved_bytes(lambda: loss.append(step.forward()), model)
        forward = counter.get_total_flops()
        step.backward(loss.pop())
        backward = counter.get_total_flops() - forward
    return dict(kept_bytes=kept, saved_bytes=saved, total_bytes=kept + saved, alive_bytes=alive, peak_bytes=peak,
                forward_gflops=forward / 1e9, backward_gflops=backward / 1e9)


def inference(trunk, image, dtype):
    """Bytes that a trunk needs at most beside its weights, and its operations; its parameters."""
    with LiveBytes() as live:
        infer(trunk, image, dtype)
    peak = live.peak
    if image.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        infer(trunk, image, dtype)
        peak = torch.cuda.max_memory_allocated() - before
    with flops() as counter:
        infer(trunk, image, dtype)
    return dict(inference_peak_bytes=peak, inference_gflops=counter.get_total_flops() / 1e9,
                parameters=sum(parameter.numel() for parameter in trunk.parameters()))
