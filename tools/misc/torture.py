"""Kill small trainings at random moments, resume each until it ends, and compare it with one that nothing disturbed.

    python tools/misc/torture.py --kills 25                      # of each case, minutes; exit code 1 where any differs
    python tools/misc/torture.py --kills 4 --cases lora dmlora --seed 7

Each kill is of a run of its own, in turn: SIGKILL at any time, SIGKILL while a file is written (before or after a sync
or a rename), SIGKILL at the moment of the method (GPS's pass, a halving, the second stage, the pruning), SIGTERM at any
time, which must end the run with 0 once it trains. Half of the runs are killed again when they have been resumed. In
the end weights, optimizer, schedules and random states are equal bit for bit. On the CPU, by tools/train.py; the
processes are forked, so that they start at once.
"""
import argparse
import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import mmpretrain.datasets
import mmpretrain.evaluation
import mmpretrain.models  # noqa: F401 once, for all processes
import torch

from e3va.command.line import one_line_errors
from e3va.dmlora.hook import DMLoRAHook
from e3va.files import whole as files
from e3va.files.checkpoint import read_checkpoint
from e3va.gps.hook import GPSHook
from e3va.pear.hook import PearHook
from e3va.train.resume import newest_checkpoint

# Name: the method with its options, and where it does what it does once, if it does.
CASES = {
    'e3va': ('e3va', {}, None),
    'e3va_stream': ('e3va', {'model.backbone.method.mode': 'stream'}, None),
    'lora': ('lora', {}, None),
    'lora_recompute': ('lora', {'model.backbone.recompute': 'block'}, None),
    'gps': ('gps', {}, (GPSHook, 'select')),
    'dmlora': ('dmlora', {'model.backbone.method.branches': 4, 'default_hooks.dmlora.every': 1,
                          'default_hooks.dmlora.scale_length': 1}, (DMLoRAHook, 'change')),
    'pear': ('pear_lora', {'default_hooks.pear.warmup': 1}, (PearHook, 'prune')),
}
KINDS = 'time', 'write', 'moment', 'term'
WRITES = 'fsync', 'replace'
CONFIG = '''
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='VisionTransformer', img_size=32,
                  arch=dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48),
                  patch_size=8, drop_path_rate=0.2),
    head=dict(type='LinearClsHead', in_channels=24, num_classes=3))
data_preprocessor = dict(num_classes=3, mean=[120.] * 3, std=[60.] * 3, to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', scale=32), dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs')]
data = dict(type='CustomDataset', data_root={data!r}, pipeline=train_pipeline)
train_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), dataset=data)
val_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=data)
val_evaluator = dict(type='Accuracy', topk=1)
train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=1)
val_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
                   dict(type='CosineAnnealingLR', by_epoch=True)]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
                     delta=dict(type='e3va.DeltaHook'), logger=dict(type='LoggerHook', interval=1))
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
randomness = dict(seed=3)
'''


def parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=25, help='of each case (default: %(default)s)')
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES), help='default: all')
    parser.add_argument('--seed', type=int, default=0, help='of the moments (default: %(default)s)')
    parser.add_argument('--folder', help='keep the runs here (default: a scratch folder, which goes)')
    return parser


def make_data(folder):
    """Sixteen pictures of noise in the folders of three classes."""
    import cv2
    import numpy as np
    draw = np.random.default_rng(0)
    for i in range(16):
        place = folder / 'data' / 'abc'[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        cv2.imencode('.png', draw.integers(0, 255, (40, 40, 3), np.uint8))[1].tofile(place / f'{i}.png')


def train(folder, work_dir, case, prepare=None):
    """Start a training in a process of its own, which goes on from what lies in `work_dir`; its id.

    Args:
        prepare (function): what the process does before.
    """
    method, options, _ = CASES[case]
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        said = os.open(work_dir.with_suffix('.log'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1), os.dup2(said, 2)
        torch.set_num_threads(1)
        if prepare:
            prepare()
        tool().main([str(folder / 'config.py'), '--method', method, '--work-dir', str(work_dir), '--resume',
                     *(['--cfg-options'] if options else []), *(f'{key}={value}' for key, value in options.items())])
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:                                               # of the process: it has to end here
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code or 0)


def tool():
    spec = importlib.util.spec_from_file_location('train', Path(__file__).parents[1] / 'train.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def killing(owner, names, count):
    """What makes a process kill itself in or behind the `count`-th call of functions."""
    def prepare():
        left = [count]

        def wrapper(real):
            def call(*args, **options):
                left[0] -= 1
                if left[0] == 0 and count % 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                found = real(*args, **options)
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return found
            return call

        for name in names:
            setattr(owner, name, wrapper(getattr(owner, name)))
    return prepare


def disturbed(folder, work_dir, case, kind, seconds, length, chance):
    """Train until the end, killed on the way; the exit codes. ValueError where it does not end well.

    Args:
        seconds (float), length (int): that the whole training takes, and its iterations.
    """
    codes, moment = [], CASES[case][2]
    for attempt in range(3):
        strike = attempt == 0 or (attempt == 1 and chance.random() < 0.5)
        prepare, delay = None, None
        if strike and kind == 'write':
            prepare = killing(os, WRITES, chance.randint(1, 24))
        elif strike and kind == 'moment' and moment:
            prepare = killing(moment[0], [moment[1]], chance.randint(1, 3))
        elif strike:
            delay = chance.uniform(0, seconds)
        process = train(folder, work_dir, case, prepare)
        code = ended(process, delay, signal.SIGTERM if kind == 'term' else signal.SIGKILL)
        codes.append(code)
        if code == 0 and iterations(work_dir) == length:
            return codes
        if code not in (0, -signal.SIGKILL) and not (code == -signal.SIGTERM and kind == 'term'):
            raise ValueError(f'{work_dir}: ended with {code}; its words are in {work_dir.with_suffix(".log")}')
    raise ValueError(f'{work_dir}: did not end, exit codes {codes}')


def ended(process, delay, kind):
    """The exit code of a process that gets a signal after some seconds, if it lives then."""
    end = None if delay is None else time.monotonic() + delay
    while True:
        done, status = os.waitpid(process, 0 if end is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(process, kind)
            end = None
        time.sleep(0.005)


def iterations(work_dir):
    """How many a run's newest checkpoint is of."""
    found = newest_checkpoint(work_dir)
    return read_checkpoint(found)['meta']['iter'] if found else 0


def state_of(work_dir):
    """What a run has left: {place in its last checkpoint: value}."""
    found = read_checkpoint(newest_checkpoint(work_dir))
    return {name: value for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'e3va_rng')
            for name, value in leaves(found.get(key), key)}


def leaves(value, name):
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f'{name}.{key}')
    else:
        yield name, value


def differences(one, other):
    """Names of what is not in both alike, bit for bit."""
    def same(a, b):
        return torch.equal(a, b) if torch.is_tensor(a) and torch.is_tensor(b) else a == b
    return sorted(name for name in one.keys() | other.keys()
                  if name not in one or name not in other or not same(one[name], other[name]))


def torture(folder, case, kills, chance):
    """Kill runs of a case; yields (kind, exit codes, what differs)."""
    whole = folder / case / 'whole'
    start = time.monotonic()
    if code := ended(train(folder, whole, case), None, None):
        raise ValueError(f'{whole}: ended with {code} undisturbed; its words are in {whole.with_suffix(".log")}')
    seconds, want = time.monotonic() - start, state_of(whole)
    kinds = [kind for kind in KINDS if kind != 'moment' or CASES[case][2]]
    for i in range(kills):
        kind, work_dir = kinds[i % len(kinds)], folder / case / f'{i:03}'
        codes = disturbed(folder, work_dir, case, kind, seconds, iterations(whole), chance)
        yield kind, codes, differences(want, state_of(work_dir))


def main(argv=None):
    args = parser().parse_args(argv)
    faults = 0
    with one_line_errors(), tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.folder or scratch).resolve()
        make_data(folder)
        files.write(folder / 'config.py', CONFIG.replace('{data!r}', repr(str(folder / 'data'))))
        for case in args.cases:
            struck, start = dict.fromkeys(KINDS, 0), time.monotonic()
            for kind, codes, wrong in torture(folder, case, args.kills, random.Random(f'{args.seed} {case}')):
                struck[kind] += sum(code != 0 for code in codes) + (kind == 'term') * (codes.count(0) - 1)
                faults += bool(wrong)
                if wrong:
                    print(f'{case}, killed by {kind} ({codes}): {len(wrong)} values differ, {", ".join(wrong[:3])}')
            told = ', '.join(f'{count} by {kind}' for kind, count in struck.items() if count)
            print(f'{case}: {args.kills} runs killed {sum(struck.values())} times ({told}) in '
                  f'{time.monotonic() - start:.0f} s', flush=True)
    print('all of them ended as the run that nothing disturbed, bit for bit' if not faults else f'{faults} runs differ')
    return int(bool(faults))


if __name__ == '__main__':
    sys.exit(main())
