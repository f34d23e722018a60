r"""Measure what methods cost on a config: memory, operations and time, side by side in one process.

    python tools/analysis_tools/cost.py mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py \
        --methods full,full-cp,fixed,e3va:rank=16,lora --size 480 800 --out rows.json --plot cost.png

    python tools/analysis_tools/cost.py CONFIG --methods full,fixed,e3va --over size=240x400,480x800,720x1200

No data and no weights are needed: images and truth are generated, weights are random.
"""
import argparse
import json
import shlex
import sys
from pathlib import Path

from e3va.command.config import load_config
from e3va.command.line import quiet
from e3va.cost import growth
from e3va.cost.measure import measure
from e3va.cost.plot import FORMATS, plot
from e3va.cost.spec import parse
from e3va.cost.table import COLUMNS, tables
from e3va.files.whole import write


def parser():
    columns = '\n'.join(f'  {name:24}{text}' for name, text in COLUMNS.items() if text)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog=f'keys of a row:\n{columns}')
    parser.add_argument('config', help='a config file, or mmdet::, mmseg::, mmpretrain:: or e3va:: and the name of '
                        'one; a method that it names is taken out')
    parser.add_argument('--methods', default='full,fixed,e3va,lora', metavar='NAME[-cp][:OPTION=VALUE,...],...',
                        help='files of configs/methods/, by name, or paths; -cp: with the trunk\'s own activation '
                        'checkpointing (default: %(default)s)')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'),
                        help='of the images, in px (default: what the config trains on)')
    parser.add_argument('--batch', type=int, default=2, help='images (default: %(default)s)')
    parser.add_argument('--steps', type=int, default=5,
                        help='timed steps of each method, after a warm-up (default: %(default)s)')
    parser.add_argument('--dtype', choices=['fp32', 'bf16', 'fp16'], default='fp32',
                        help='bf16, fp16: autocast (default: %(default)s)')
    parser.add_argument('--over', metavar='WHAT=V1,V2,...', help='measure at several values of size (HxW), batch, rank '
                        'or depth (blocks of the trunk), and fit how memory and time grow')
    parser.add_argument('--out', metavar='ROWS.json', help='write a row for each method')
    parser.add_argument('--plot', metavar='COST.png', help='draw memory against time')
    return parser


def check_writable(option, path):
    """ValueError where a file cannot be written: found before minutes of measuring."""
    path = Path(path)
    new = not path.exists()
    try:
        path.open('a').close()
    except OSError as error:
        raise ValueError(f'{option} {path} cannot be written: {error.strerror}') from error
    if new:
        path.unlink()


def main(argv=None):
    args = parser().parse_args(argv)
    with quiet() as say:
        for option, path in (('--out', args.out), ('--plot', args.plot)):
            if path:
                check_writable(option, path)
        if args.plot and Path(args.plot).suffix not in FORMATS:
            raise ValueError(f'--plot {args.plot}: the name must end in {", ".join(FORMATS)}')
        cfg = load_config(args.config)
        common = dict(size=args.size, images=args.batch, steps=args.steps, dtype=args.dtype, say=say)
        specs = parse(args.methods)
        rows = (growth.sweep(cfg, specs, *growth.parse(args.over), **common) if args.over else
                measure(cfg, specs, **common))
        command = shlex.join(['python', *(sys.argv if argv is None else [sys.argv[0], *argv])])
        rows = [dict(config=args.config, **row, command=command) for row in rows]
    if args.out:
        write(args.out, '[' + ',\n '.join(map(json.dumps, rows)) + ']\n')
    if args.plot:
        (growth.plot if args.over else plot)(rows, args.plot)
    print((growth.tables if args.over else tables)(rows))


if __name__ == '__main__':
    main()
