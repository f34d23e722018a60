"""What sharding the frozen weights takes on the wire and gives back in memory, by formula: docs/sharding.md's table.

    python tools/analysis_tools/sharding.py --write

Parameters are counted on backbones that are built without memory. Nothing here is measured.
"""
import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'sharding.md'
BEGIN, END = '<!-- begin: tools/analysis_tools/sharding.py -->', '<!-- end -->'
TRUNKS = {'Swin-L': 'swin_large_patch4_window12_384', 'ViT-g': 'vit_giant_patch14_dinov2',
          'ViT-7B': 'vit_7b_patch16_dinov3'}
METHODS = {'E3VA': dict(type='E3VA', rank=8), 'LoRA': dict(type='LoRA', rank=8)}
# How often a step gathers a block's frozen weights: E3VA reads them in its forward alone, streamed once more, and the
# gradient of LoRA goes through them.
GATHERS = {'E3VA': 1, 'LoRA': 2}
PROCESSES = 8, 64, 1024
FROZEN, GRADIENT = 2, 4                                                 # bytes of a value: bf16, fp32


def on_the_wire(frozen, trained, processes, gathers=0):
    """Bytes that each process sends in a step: a ring of n hands on (n - 1) / n of what it gathers, twice of a sum.

    Args:
        gathers (int): 0: the frozen weights are whole everywhere (DDP).
    """
    share = (processes - 1) / processes
    return share * (2 * GRADIENT * trained + gathers * FROZEN * frozen)


def held(frozen, processes=1):
    """Bytes of the frozen weights in each process."""
    return FROZEN * frozen / processes


def counts(name, method):
    """(frozen, trained) parameters of a backbone of timm under a method."""
    import timm
    import torch

    import e3va
    with torch.device('meta'):
        model = e3va.tune(timm.create_model(name, num_classes=0), method)
    sizes = [(one.requires_grad, one.numel()) for one in model.parameters()]
    return tuple(sum(size for trains, size in sizes if trains == wanted) for wanted in (False, True))


def table():
    """Markdown: a row for each backbone and method."""
    lines = ['| backbone, method | frozen | trained | DDP sends | sharded sends: '
             + ' | '.join(f'{n} processes' for n in PROCESSES) + ' | frozen weights: whole | '
             + ' | '.join(f'/ {n}' for n in PROCESSES) + ' |',
             '|---|' + '---:|' * (4 + 2 * len(PROCESSES))]
    for trunk, name in TRUNKS.items():
        for method, config in METHODS.items():
            frozen, trained = counts(name, config)
            cells = [f'{frozen / 1e6:,.0f} M', f'{trained / 1e6:.2f} M', size(on_the_wire(frozen, trained, 1024)),
                     *(size(on_the_wire(frozen, trained, n, GATHERS[method])) for n in PROCESSES),
                     size(held(frozen)), *(size(held(frozen, n)) for n in PROCESSES)]
            lines.append(f'| {trunk}, {method} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def size(count):
    """Bytes for people."""
    return f'{count / 1e9:,.2f} GB' if count >= 1e9 else f'{count / 1e6:,.1f} MB'


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--write', action='store_true', help=f'write {PAGE.relative_to(ROOT)}')
    args, text = parser.parse_args(argv), table()
    if not args.write:
        print(text)
        return
    from e3va.files.whole import write
    before, _, rest = PAGE.read_text().partition(BEGIN)
    write(PAGE, f'{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}')


if __name__ == '__main__':
    import e3va  # noqa: F401 first of all: it helps the stack import
    main()
