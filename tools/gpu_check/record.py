"""Rows of a check as JSON lines: each is written when it is measured, so that a kill loses none."""
import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ('torch', 'torchvision', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation',
            'onedl-mmpretrain', 'timm', 'transformers', 'torchao', 'numpy')


def part_arguments(description):
    """The arguments that run.py hands to each part."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda')
    parser.add_argument('--until', type=float, help='when it must be over, in seconds since the epoch')
    args = parser.parse_args()
    args.seconds = args.until - time.time() if args.until else 540      # imports have taken some
    return args


class Record:
    """Writes the rows of one part.

    Attributes:
        path: rows.jsonl, to which each row is appended.
        common: what every row says: part, device, versions, commit and command.
    """

    def __init__(self, out, part, device, seconds):
        self.path, self.end = Path(out) / 'rows.jsonl', time.monotonic() + seconds
        self.common = dict(part=part, device=device_name(device), commit=commit(), versions=versions(),
                           command=shlex.join(['python', Path(sys.argv[0]).name, *sys.argv[1:]]))

    def left(self):
        """Seconds until the part must be over."""
        return self.end - time.monotonic()

    def row(self, case, status='done', **values):
        line = json.dumps(dict(case=case, status=status, **values, **self.common))
        with open(self.path, 'a') as file:                              # several processes append whole lines
            file.write(line + '\n')
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def attempt(self, case, seconds=0, **values):
        """What fails in it is a row, and what follows goes on. `False` is given where `seconds` are not left for it."""
        if self.left() < seconds:
            self.row(case, 'not run', why=f'out of time: {seconds:.0f} s are needed, {max(0, self.left()):.0f} left',
                     **values)
            yield False
            return
        try:
            yield True
        except Exception as error:
            traceback.print_exc()
            self.row(case, 'failed', why=why(error), **values)


def why(error):
    """An error in a line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = (str(error).strip().splitlines() or ['no message'])[0]
    return f'{type(error).__name__}: {said[:300]} ({Path(frame.filename).name}:{frame.lineno})'


def read(out):
    """The rows that are there, a list of dict; a last line that a kill cut off is left out."""
    rows, path = [], Path(out) / 'rows.jsonl'
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def forget(out, parts):
    """Take the rows of an earlier run of some parts out, which are to be measured again."""
    kept = [row for row in read(out) if row['part'] not in parts]
    (Path(out) / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in kept))


def device_name(device):
    if device == 'cuda':
        import torch
        return torch.cuda.get_device_name()
    return f'{len(os.sched_getaffinity(0))}-core CPU'


def versions():
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def commit():
    """As `e3va.files.checkout.commit`, which a part must not import before it is measured."""
    try:
        done = subprocess.run(['git', 'describe', '--always', '--dirty', '--exclude=*'], cwd=ROOT, capture_output=True,
                              text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
