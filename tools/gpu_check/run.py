"""Run the parts of a GPU's check in turn, each in a process of its own; called by tools/gpu_check.sh.

A part gets so many seconds, all of them what is left until the end. One that fails, crashes or runs over is a row, and
the next one follows. The page is written anew after each.
"""
import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import page
from record import Record, forget, read

# part: its file, the most seconds that it gets, those that are kept for it while others run, what it does
PARTS = dict(
    environment=('environment.py', 60, 0, "versions, and mmcv's operators against the CPU's"),
    tests=('suite.py', 150, 60, 'tests/test_device.py: each method forward and backward, AMP, modes, bits, DDP'),
    figures=('figures.py', 300, 120, 'memory and time of real configs at full size, and the plan; the largest batches'),
    training=('training.py', 330, 75, 'tools/train.py under four methods; the demo for three minutes at most'))
LEAST = 15              # seconds for which a part is worth a start
GRACE = 10              # seconds in which a part that is over may end by itself
PAGE = 5                # seconds kept for the page


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda')
    parser.add_argument('--only', nargs='+', action='extend', choices=list(PARTS), default=[])
    parser.add_argument('--seconds', type=float, default=540)
    parser.add_argument('--began', type=float, help='when the set-up began, in seconds since the epoch')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    end = (args.began or time.time()) + args.seconds - PAGE
    chosen = [part for part in PARTS if part in args.only or not args.only]
    args.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))             # ends the part that runs, too
    forget(args.out, chosen)
    for i, part in enumerate(chosen):
        kept = sum(PARTS[later][2] for later in chosen[i + 1:])
        run(part, args.out, args.device, end, kept)
        page.write(args.out)
    bad = [row for row in read(args.out) if row['status'] == 'failed' and row['part'] in chosen]
    print(f'{args.out / "gpu.md"}: {len(bad)} failed' if bad else args.out / 'gpu.md')
    return bool(bad)


def run(part, out, device, end, kept):
    """Run a part until it is over, or its time is; `kept` seconds before the end are those of the next ones."""
    file, most, _, what = PARTS[part]
    left = end - time.time()
    seconds = min(most, max(left - kept, LEAST))
    if left < LEAST:
        Record(out, part, device, 0).row(part, 'not run', why=f'out of time: {max(0, left):.0f} s left')
        print(f'{part}: not run, out of time', flush=True)
        return
    print(f'{part}: at most {seconds:.0f} s. {what}', flush=True)
    began = time.time()
    with tempfile.TemporaryFile('w+') as said:
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name(file), out, '--device', device, '--until', str(began + seconds)],
            stderr=said, start_new_session=True)
        try:
            code = process.wait(max(1, min(seconds + GRACE, end - time.time())))
            why = None if code == 0 else f'ended with status {code}'
        except subprocess.TimeoutExpired:
            why = f'stopped after {time.time() - began:.0f} s'
        finally:
            end_group(process)
        said.seek(0)
        log = said.read().splitlines()
    if why:
        print('\n'.join(log[-15:]), file=sys.stderr)
        Record(out, part, device, 0).row(part, 'failed', why=why, log=log[-15:])
    print(f'{part}: {why or "done"}, {time.time() - began:.0f} s', flush=True)


def end_group(process):
    """End a part and what it has started: a card is to be free for the next one."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


if __name__ == '__main__':
    sys.exit(main())
