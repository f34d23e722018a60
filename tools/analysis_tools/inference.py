r"""What methods cost at inference, merged where they can be: added parameters, operations and time of the trunk.

    python tools/analysis_tools/inference.py --table6                   # Table 6 of the DMLoRA paper, on ViT-B/16
    python tools/analysis_tools/inference.py CONFIG --methods dmlora,gps,ssf,vpt_deep --batch 8

Parameters and operations are counted, times are those of runs in turn. No data and no weights are needed.
"""
import argparse
import json
from functools import partial

import torch
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from rich.console import Console

from e3va.command.config import load_config
from e3va.command.line import quiet
from e3va.cost import batch, inference, spec
from e3va.cost.measure import device_name
from e3va.cost.table import number, short, table
from e3va.files.whole import write

TABLE6 = 'e3va::_base_/tasks/vtab_cifar_vit_b.py'
PAPER = {                               # method: added parameters and operations, time for 128 images on a GPU
    'full': ('0', '0', '1'), 'vpt_deep': ('0.53 M', '5.60 G', '1.37'),
    "adapter:roles=('fc2',)": ('0.16 M', '0.03 G', '1.06'), 'adaptformer_8': ('0.16 M', '0.03 G', '1.04'),
    'dmlora': ('0', '0', '1')}
NOTE = """Operations are of one image. Here a multiplication with its addition is two of them, in the paper one. Its VPT
has prompts chosen per task; here it has 50, which skip the MLP in front of the block that replaces them."""


def parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help='a config file, or mmdet::, mmseg::, mmpretrain:: or e3va:: and the '
                        'name of one; a method that it names is taken out')
    parser.add_argument('--table6', action='store_true',
                        help="the methods and the trunk of the DMLoRA paper's Table 6, beside its numbers")
    parser.add_argument('--methods', metavar='NAME[:OPTION=VALUE,...],...',
                        help='files of configs/methods/, by name, or paths (default: full,dmlora)')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'),
                        help='of the images, in px (default: what the config trains on)')
    parser.add_argument('--batch', type=int, default=2, help='images (default: %(default)s)')
    parser.add_argument('--steps', type=int, default=5, help='timed rounds, after a warm-up (default: %(default)s)')
    parser.add_argument('--out', metavar='ROWS.json', help='write a row for each method')
    return parser


def measure(cfg, specs, size, images, steps, say=lambda text: None):
    """(size, rows): a row for each method, with the keys of `inference.compare`; operations are of one image."""
    for name, value in (('--steps', steps), ('--batch', images), ('--size', min(size or (1, )))):
        if value < 1:
            raise ValueError(f'{name} must be at least 1, not {value}')
    cfg = spec.stock(cfg)
    configs = {each.label: spec.tuned(cfg, each).model.backbone for each in specs}
    size = tuple(size or batch.default_size(cfg))
    init_default_scope(cfg.default_scope)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        trunks = dict(stock=registry.build(cfg.model.backbone))
        for label, config in configs.items():
            say(f'building {label}')
            trunks[label] = inference.final(registry.build(config))
    found = inference.compare(trunks, torch.randn(images, 3, *size).to(get_device()), None, steps, say)
    for row in found.values():
        row['added_gflops'] /= images
    return size, [dict(method=label, **row) for label, row in found.items()]


def text(rows, paper):
    """The rows as a table; `paper`: beside the numbers of Table 6."""
    ours = {
        'added\nparameters': lambda row: f'{row["added_parameters"]:,}',
        'added\nGFLOPs': lambda row: number(row['added_gflops'], 2),
        'time\n/ stock': lambda row: number(row['inference_to_stock'], 2)}
    columns = {}
    for i, (title, cell) in enumerate(ours.items()):
        columns[title] = cell
        if paper:
            columns[f'paper{" " * i}'] = partial(printed, i)            # a name of its own for each column
    columns['median ms'] = lambda row: short(row['inference_ms'])
    columns['min to max'] = lambda row: f'{short(row["inference_ms_min"])} to {short(row["inference_ms_max"])}'
    console = Console(width=120, highlight=False)
    with console.capture() as captured:
        console.print(table('Inference of the trunk, merged where the method can be', rows, columns))
        if paper:
            console.print(NOTE)
    return captured.get().rstrip()


def printed(i, row):
    return PAPER.get(row['method'], ('-', '-', '-'))[i]


def main(argv=None):
    args = parser().parse_args(argv)
    with quiet() as say:
        if bool(args.config) == args.table6:
            raise ValueError('give a config, or --table6, which has its own')
        config = args.config or TABLE6
        specs = spec.parse(args.methods or (','.join(PAPER) if args.table6 else 'full,dmlora'))
        size, rows = measure(load_config(config), specs, args.size, args.batch, args.steps, say)
    if args.out:
        rows = [dict(config=config, height=size[0], width=size[1], batch=args.batch, device=device_name(get_device()),
                     **row) for row in rows]
        write(args.out, '[' + ',\n '.join(map(json.dumps, rows)) + ']\n')
    print(f'{config}: {size[0]}x{size[1]}, batch {args.batch}, fp32, {device_name(get_device())}; random weights and '
          'images')
    print(text(rows, args.table6))


if __name__ == '__main__':
    main()
