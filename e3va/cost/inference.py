"""What trunks cost at inference, merged where the method can be, beside the stock one."""
from functools import partial

import e3va

from . import count
from .clock import interleaved, on, seconds, spread
from .step import infer


def compare(trunks, image, dtype, steps, say):
    """Bytes, operations and time of an inference of trunks, counted in turn and timed side by side.

    Args:
        trunks (dict): {label: trunk}, the stock one as 'stock'; their parameters get frozen.
        image (Tensor): (B, 3, H, W), where they are to run.
        dtype (torch.dtype): of autocast; None for none.
        steps (int): timed rounds, after one that is not timed.
        say (callable): is told what is being done.

    Returns:
        dict: for each label but 'stock' the keys of `table.COLUMNS` from `inference_ms` on.
    """
    device, found = image.device.type, {}
    for label, trunk in trunks.items():
        trunk.eval()
        trunk.requires_grad_(False)                             # autocast keeps copies of weights that may train
        with on(device, trunk):
            found[label] = count.inference(trunk, image, dtype)
    with on(device, *trunks.values()):
        times = interleaved({f'{label} (inference)': partial(infer_seconds, trunk, image, dtype)
                             for label, trunk in trunks.items()}, steps, say)
    for label, each in found.items():
        each.update(spread('inference', times[f'{label} (inference)']))
    stock = found.pop('stock')
    return {label: against_stock(each, stock) for label, each in found.items()}


def final(trunk):
    """A tuned trunk as one would serve it."""
    return e3va.merge(trunk) if trunk.tuning.method.mergeable else trunk


def infer_seconds(trunk, image, dtype):
    return seconds(lambda: infer(trunk, image, dtype), image.device.type)


def against_stock(found, stock):
    """The keys of inference, and what a method adds to the stock trunk there."""
    added = found['inference_gflops'] - stock['inference_gflops']
    return dict(
        {key: value for key, value in found.items() if key != 'parameters'},
        inference_to_stock=found['inference_ms'] / stock['inference_ms'],
        inference_peak_to_stock=found['inference_peak_bytes'] / stock['inference_peak_bytes'],
        added_parameters=found['parameters'] - stock['parameters'],
        added_gflops=added, added_gflops_fraction=added / stock['inference_gflops'])
