r"""Plan the memory of training on cards that need not be there: by part, by batch, and the largest batch that fits.

    python tools/analysis_tools/plan_memory.py mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py \
        --method full,e3va:mode=stream --size 800 1344 --gpu 11 24
    python tools/analysis_tools/plan_memory.py --table4

No GPU, no data and no weights are needed. How it is counted is said in e3va/cost/plan.py.
"""
import argparse
import contextlib
import math
from functools import partial

from rich.console import Console

from e3va.command.config import load_config
from e3va.command.line import quiet
from e3va.cost.batch import OBJECTS
from e3va.cost.plan import plan
from e3va.cost.spec import parse
from e3va.cost.table import mib, table

GIB = 2 ** 30
TABLE4 = dict(config='e3va::_base_/tasks/coco_cascade_swin_l.py', method='full,lora:rank=64,e3va', objects=128)
CARDS = (11, 16, 24, 32)                # GTX 1080 Ti, P100, RTX 3090, V100
PAPER = {                               # (method, batch): cards that it fits
    ('full', 1): (24, 32), ('full', 2): (), ('lora', 1): (24, 32), ('lora', 2): (),
    ('e3va', 1): (11, 16, 24, 32), ('e3va', 2): (16, 24, 32)}

NOTES = """The peak is weights + AdamW + saved + workspace; gradients come while what is saved goes, and those that are
there at the peak are in the workspace. A card fits that has {:g} GiB (--reserve) more: on top come the context of CUDA,
workspaces of cuDNN and what the allocator cannot use, which are not counted; they are typically several hundred MiB."""
DIFFERENCES = """The paper's ticks, the same for LoRA, BitFit and Adapter, ask for more memory than is counted here,
and than its Table 2 gives at batch 2: there E3VA on Swin-L takes 9471 MB (no tick at 11 GB), and on Swin-B full, fixed,
LoRA and E3VA take 17061, 7137, 11975 and 7639 MB, where here 15428, 5143, 11717 and 6298 MiB are counted (128 boxes).
Swin-L is 1.5 times as wide, so full would take about 23 GB there by Table 2 (no tick at 32 GB). What else its cards
held, and whether it trained in mixed precision, the paper does not say."""


def parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help='a config file, or mmdet::, mmseg::, mmpretrain:: or e3va:: and the '
                        'name of one; a method that it names is taken out')
    parser.add_argument('--method', '--methods', metavar='NAME[-cp][:OPTION=VALUE,...],...',
                        help='files of configs/methods/, by name, or paths; -cp: with the trunk\'s own activation '
                        'checkpointing (default: e3va)')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'),
                        help='of the images, in px (default: what the config trains on)')
    parser.add_argument('--gpu', nargs='+', action='extend', metavar='GIB',
                        help=f'memory of cards (default: the paper\'s, {" ".join(map(str, CARDS))})')
    parser.add_argument('--dtype', choices=['fp32', 'bf16'], default='fp32',
                        help='bf16: autocast, by the rules of the CPU (default: %(default)s)')
    parser.add_argument('--objects', type=int, help='boxes in an image, for a detector: many for the fullest heads '
                        f'(default: {OBJECTS}, as cost.py; with --table4 {TABLE4["objects"]})')
    parser.add_argument('--reserve', default='0.8', metavar='GIB',
                        help='kept free for what is not counted (default: %(default)s)')
    parser.add_argument('--table4', action='store_true',
                        help='Table 4 of the E3VA paper, Cascade Mask R-CNN with Swin-L, beside the paper\'s ticks')
    return parser


def gibibytes(option, text, zero=False):
    """Bytes of a size that was given in GiB."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf or zero and float(text) == 0:
            return float(text) * GIB
    raise ValueError(f'{option} takes GiB, a number {"of at least" if zero else "above"} 0, not {text}')


def batches(plan, room):
    """Doubling, up to the first that does not fit `room` bytes."""
    images = 2 ** (plan.first - 1)
    while plan.peak(images) <= room:
        yield images
        images *= 2
    yield images


def tables(plans, cards, reserve, paper):
    """Parts and ticks for each method and batch, and the largest batches, as text.

    Args:
        cards (dict): {name: bytes}.
        paper (bool): for the batches of the paper's Table 4, with its ticks.
    """
    rows = [dict(method=plan.label, plan=plan, images=images) for plan in plans
            for images in ((1, 2) if paper else batches(plan, max(cards.values()) - reserve))]

    def tick(card, row):
        own = '✓' if row['plan'].peak(row['images']) + reserve <= cards[card] else '✗'
        fits = PAPER.get((row['method'].partition(':')[0], row['images'])) if paper else None
        return own if fits is None else f'{own} / {"✓" if float(card) in fits else "✗"}'

    parts = table('Training memory in MiB', rows, {
        'batch': lambda row: str(row['images']),
        'weights': lambda row: mib(row['plan'].weights, 0),
        'gradi-\nents': lambda row: mib(row['plan'].gradients, 0),
        'AdamW': lambda row: mib(row['plan'].moments, 0),
        'saved for\nbackward': lambda row: mib(row['plan'].saved(row['images']), 0),
        'work-\nspace': lambda row: mib(row['plan'].workspace(row['images']), 0),
        'peak': lambda row: mib(row['plan'].peak(row['images']), 0),
        **{f'{card} GiB' + ('\n/ paper' if paper else ''): partial(tick, card) for card in cards}})
    most = table('Largest batch that fits', [dict(method=plan.label, plan=plan) for plan in plans], {
        f'{card} GiB': lambda row, size=size: str(row['plan'].largest(size - reserve) or '-')
        for card, size in cards.items()})
    console = Console(width=120, highlight=False)
    with console.capture() as captured:
        console.print(parts)
        console.print(NOTES.format(reserve / GIB))
        console.print(most)
        if paper:
            console.print(DIFFERENCES)
    return captured.get().rstrip()


def main(argv=None):
    args = parser().parse_args(argv)
    with quiet() as say:
        if bool(args.config) == args.table4:
            raise ValueError('give a config, or --table4, which has its own')
        cards = {text: gibibytes('--gpu', text) for text in args.gpu or map(str, CARDS)}
        reserve = gibibytes('--reserve', args.reserve, zero=True)
        given = TABLE4 if args.table4 else dict(config=args.config, method='e3va', objects=OBJECTS)
        cfg, specs = load_config(given['config']), parse(args.method or given['method'])
        objects = given['objects'] if args.objects is None else args.objects
        size, plans = plan(cfg, specs, args.size, args.dtype, objects, say)
    print(f'{given["config"]}: {size[0]}x{size[1]}, {args.dtype}, {objects} boxes in an image; counted, not run')
    print(tables(plans, cards, reserve, args.table4))


if __name__ == '__main__':
    main()
