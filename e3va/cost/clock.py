"""Wall times of functions that run in turn, each alone on the device."""
import contextlib
import gc
import statistics
import time

import torch


@contextlib.contextmanager
def on(device, *modules):
    """Modules on a device, and back on the CPU afterwards, so that each is alone where its memory is measured."""
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module in modules:
            module.to('cpu')


def seconds(run, device, clock=time.perf_counter):
    """Time of run(), by default of the wall."""
    gc.collect()
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def synchronize(device):
    if device == 'cuda':
        torch.cuda.synchronize()


def interleaved(runs, rounds, say):
    """{label: seconds of each round} of functions that time themselves, in turn; the first round is a warm-up.

    Each round begins with another one, so that none always runs behind the same neighbour.
    """
    times, order = {label: [] for label in runs}, list(runs)
    for i in range(rounds + 1):
        for label in order:
            say(f'timing {label}, {f"{i} of {rounds}" if i else "warm-up"}')
            times[label].append(runs[label]())
        order.append(order.pop(0))
    return {label: values[1:] for label, values in times.items()}


def spread(name, times):
    return {f'{name}_ms': 1e3 * statistics.median(times), f'{name}_ms_min': 1e3 * min(times),
            f'{name}_ms_max': 1e3 * max(times)}
