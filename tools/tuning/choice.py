"""Which trunk, size, batch, method and how many epochs: what fits the memory by the plan, and the time by a timed step.

The method: LoRA where it fits, as it learned most of what merges in what was measured here (configs/bench/README.md);
then LoRA that keeps 8 bits, then with its blocks run again, which gives the same at more time; then E3VA, which
backpropagates nothing through the trunk.
"""
import contextlib
import dataclasses
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from e3va.command.config import apply_method, prepare
from e3va.cost.plan import in_turn
from e3va.cost.spec import parse

from .task import EPOCHS, config

GIB = 2 ** 30
LADDER = 'lora', 'lora:gelu=int8,inputs=int8', 'lora:recompute=block', 'e3va', 'e3va:mode=stream'
SIDES = dict(detection=(224, 336, 448, 644, 896), instance=(224, 336, 448, 644, 896), semantic=(112, 224, 336, 448),
             classification=(42, 112, 168, 224, 336))                   # px, of 14
BATCHES = dict(detection=4, instance=4, semantic=8, classification=16)
RESERVE = dict(cuda=0.8 * GIB, cpu=1. * GIB)                            # context and workspaces; Python and the loaders
FEWEST = 4                                                              # epochs below which a smaller size is better


@dataclasses.dataclass
class Choice:
    size: int
    batch: int
    epochs: int
    method: str
    step: float                                                         # seconds
    why: list


def memory(given):
    """Bytes to train in: given, in GiB; else the card's, else what the machine has free."""
    if given:
        return given * GIB
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    with contextlib.suppress(OSError, ValueError, StopIteration), open('/proc/meminfo') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('MemAvailable')) * 1024
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def choose(found, place, trunk, given, say):
    """A `Choice`.

    Args:
        given: the command line's `gpu` (GiB), `hours`, `method`, `size`, `batch`, `epochs`; None is chosen.
        say (callable): gets each reason as it is known.

    Raises:
        ValueError: nothing fits the memory.
    """
    room = memory(given.gpu) - RESERVE['cuda' if torch.cuda.is_available() else 'cpu']
    why, sides = [], [given.size] if given.size else sizes(found, trunk['patch'])

    def reason(text):
        why.append(text)
        say(text)

    for size in reversed(sides):
        fitting = fit(found, place, trunk, size, room, given)
        if fitting is None:
            reason(f'{size} px: no method fits {room / GIB:.1f} GiB')
            continue
        method, batch, needed = fitting
        seconds = timed(found, place, trunk, size, batch, method)
        steps = math.ceil(len(found.split('train')) / batch)
        epochs = given.epochs or max(1, min(EPOCHS[found.task], int(0.85 * given.hours * 3600 / (steps * seconds))))
        if epochs >= FEWEST or size == sides[0] or given.epochs:
            break
        reason(f'{size} px: a step takes {seconds:.2f} s, so {given.hours:g} h are {epochs} epochs: too few')
    else:
        raise ValueError(f'nothing fits {room / GIB:.1f} GiB: give more by --gpu, or a smaller --size')
    reason(f'{size} px, {batch} images a step, {method}: {needed / GIB:.2f} of {room / GIB:.1f} GiB by the memory plan')
    minutes = math.ceil(epochs * steps * seconds / 60)
    reason(f'a step takes {seconds:.2f} s, an epoch has {steps}: {epochs} epoch{"s" * (epochs > 1)} in about '
           f'{minutes} minute{"s" * (minutes > 1)}, and the scoring')
    return Choice(size, batch, epochs, method, seconds, why)


def sizes(found, patch):
    """Sides of whole patches that do not enlarge most images; the smallest one always."""
    median = statistics.median(max(item.size) for item in found.split('train'))
    return [math.ceil(side / patch) * patch for side in SIDES[found.task]
            if side <= 1.25 * median or side == SIDES[found.task][0]]


def fit(found, place, trunk, size, room, given):
    """(method, batch, bytes) of the first method of the ladder that fits with the largest batch up to the usual one."""
    wanted = given.batch or min(BATCHES[found.task], len(found.split('train')))
    cfg = config(found, place, size, wanted, 1, trunk)
    specs = parse(','.join([given.method] if given.method != 'auto' else LADDER))
    side = math.ceil(size / trunk['patch']) * trunk['patch']
    _, plans = in_turn(cfg, specs, (side, side))                        # none is counted behind the first that fits
    for each in plans:
        for batch in ([wanted] if given.batch else [wanted, wanted // 2]):
            if batch >= each.first and each.peak(batch) <= room:
                return each.label, batch, each.peak(batch)
    return None


def timed(found, place, trunk, size, batch, method, steps=3):
    """Seconds of a training step, the data's loading included: the median of a few behind a first one."""
    from mmengine.runner import Runner
    cfg = config(found, place, size, batch, 1, trunk)
    spec, = parse(method)
    cfg = prepare(apply_method(cfg, spec.method))
    with (contextlib.redirect_stdout(None), contextlib.redirect_stderr(None),
          tempfile.TemporaryDirectory() as folder):
        cfg.work_dir, cfg.log_level, cfg.experiment_name = folder, 'ERROR', f'timed_{Path(folder).name}'
        runner = Runner.from_cfg(cfg)
        loader = iter(runner.build_dataloader(cfg.train_dataloader))
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        times = []
        runner.model.train()
        for _ in range(steps + 1):
            start = time.perf_counter()
            batch_data = next(loader, None)
            if batch_data is None:
                break
            runner.model.train_step(batch_data, runner.optim_wrapper)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:] or times)
