"""The tests that are marked `cuda`, on a card; on a CPU their twins."""
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from record import ROOT, Record, part_arguments


def main():
    args = part_arguments(__doc__)
    out = args.out.resolve()
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'outcomes', '-m',
               'cuda' if args.device == 'cuda' else 'not cuda', 'tests/test_device.py', '-p', 'no:cacheprovider']
    workers = min(6, os.cpu_count() // 2)                               # each has a context of the card, half a GB
    if args.device == 'cuda' and workers > 1 and find_spec('xdist'):
        command += ['-n', str(workers)]
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    environment = dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1', GPU_CHECK_OUT=str(out),
                       GPU_CHECK_DEVICE=args.device)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sys.stderr)
    try:
        code = process.wait(max(1, args.seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        Record(out, 'tests', args.device, 0).row('tests', 'not run', why='out of time: the rest of the tests')
        return 0
    return 0 if code in (0, 1) else code                                # failed tests have their rows


if __name__ == '__main__':
    sys.exit(main())
