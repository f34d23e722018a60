"""Memory and time of training steps of real configs, methods in turn, beside what plan_memory.py counts without a card.

Images, truth and weights are random. Of a card: the allocator's peak and what the device holds then, times by CUDA's
events. Of a CPU: the peak counted where operators are dispatched, wall times.
"""
import gc
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import cases
import fits
import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from record import Record, part_arguments

from e3va.cost import batch, count, spec
from e3va.cost.clock import interleaved, on, seconds, spread
from e3va.cost.measure import DTYPES, build
from e3va.cost.step import Step, settle

ROUNDS = dict(cuda=5, cpu=1)


def main():
    args = part_arguments(__doc__)
    record = Record(args.out, 'figures', args.device, args.seconds)
    MMLogger.get_instance('e3va', log_level='ERROR')                    # loads have much to say
    plans = subprocess.Popen([sys.executable, Path(__file__).with_name('predict.py'), *sys.argv[1:]],
                             env=dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='2'))
    try:
        for group in cases.GROUPS:
            with record.attempt(group.name, group.seconds if args.device == 'cuda' else 45) as there:
                if there:
                    print(f'  {group.name}', flush=True)
                    measure(group, args.device, record)
        if args.device == 'cuda':
            fits.measure(record)
        else:
            record.row('largest batch', 'not run', why='there is no allocator to limit on a CPU')
        plans.wait(max(1, record.left()))
    except subprocess.TimeoutExpired:
        record.row('plan', 'not run', why='out of time: the rest of what plan_memory.py was to count')
    finally:
        plans.terminate()


def measure(group, device, record):
    """Rows of a group: bytes method by method, each alone on the device, then times of all in turn."""
    cfg, size = cases.config(group.task, reduced=device == 'cpu')
    init_default_scope(cfg.default_scope)
    data, dtype = batch.generate(cfg, size, group.images), DTYPES[group.dtype]
    if device == 'cpu' and dtype is torch.float16:
        dtype = torch.bfloat16                                          # autocast's type of a CPU
    models, rows = {}, {}
    for each in group.specs:
        case = f'{group.name}: {each.label}'
        with record.attempt(case):
            config = spec.tuned(cfg, each).model
            if 'gps' in each.label and 'drop_path_rate' in config.backbone:
                config.backbone.drop_path_rate = 0.                     # one batch must reach every layer
            batch.fix_size(config, size)
            model = build(config, next(iter(models.values()), None))
            with on(device, model):
                settle(model, data)
                rows[each.label] = bytes_of(model, data, dtype, device)
            models[each.label] = model
    try:
        with on(device, *models.values()):
            times = interleaved({label: partial(step_seconds, model, data, dtype) for label, model in models.items()},
                                ROUNDS[device], lambda text: None)
            for label, row in rows.items():
                row.update(spread('step', times[label]))
    finally:                                                            # the bytes were measured, whatever came then
        for label, row in rows.items():
            record.row(f'{group.name}: {label}', task=group.task, method=label, images=group.images,
                       dtype=str(dtype or torch.float32)[6:], height=size[0], width=size[1], **row)
        models.clear()
        free()


def bytes_of(model, data, dtype, device):
    """What a step keeps and takes, see `e3va.cost.table.COLUMNS`; of a card also what its allocator and device hold."""
    row = count.training(model, data, dtype)
    if device == 'cuda':
        free()
        with Step(model, data, dtype) as step:
            torch.cuda.reset_peak_memory_stats()
            step.run()
            torch.cuda.synchronize()
            unused, total = torch.cuda.mem_get_info()
            row.update(peak_bytes=torch.cuda.max_memory_allocated(), reserved_bytes=torch.cuda.max_memory_reserved(),
                       device_bytes=total - unused)
        free()
    return row


def free():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def step_seconds(model, data, dtype):
    """Seconds of a step: of a card between two events of its stream, else by the wall clock."""
    with Step(model, data, dtype) as step:
        if step.device != 'cuda':
            return seconds(step.run, step.device)
        gc.collect()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        step.run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3


if __name__ == '__main__':
    main()
