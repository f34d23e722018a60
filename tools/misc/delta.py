r"""What is inside a delta: what it is of, where its bytes are, whether it and its base are whole, how two differ.

    python tools/misc/delta.py show cells.safetensors                   # method, trunk, base, config, classes, commit
    python tools/misc/delta.py sizes cells.safetensors
    python tools/misc/delta.py verify cells.safetensors [--base FILE]   # exit code 1 where something is amiss
    python tools/misc/delta.py diff before.safetensors after.safetensors
    python tools/misc/delta.py extract swin.pth full/epoch_12.pth cells.safetensors --rank 8     # a LoRA of full tuning

A delta may also be a folder of publish_delta.py, or an e3va:// address.
"""
import argparse
import os
import re
from collections import defaultdict

from rich.console import Console
from rich.table import Table

import e3va
from e3va.command.config import load_config
from e3va.command.line import one_line_errors, quiet, trust_option
from e3va.delta import file as delta_file
from e3va.delta.address import place
from e3va.delta.approximate import extract_files
from e3va.delta.base import find_base
from e3va.delta.config import heard
from e3va.delta.scheme import rebuilt
from e3va.files.checkpoint import trusting
from e3va.tuned import find_tuned

console = Console(soft_wrap=True, highlight=False)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest='verb', required=True)
    for verb, files in (('show', 1), ('diff', 2), ('verify', 1), ('sizes', 1)):
        one = verbs.add_parser(verb)
        one.add_argument('files', nargs=files, metavar='FILE')
        if verb == 'verify':
            one.add_argument('--base', metavar='FILE', help="the trunk's weights (default: what the delta records)")
    one = trust_option(verbs.add_parser('extract'))
    one.add_argument('base', help="the trunk's weights before: a file or URL, of the trunk or of a whole model")
    one.add_argument('tuned', help='the checkpoint of full fine-tuning')
    one.add_argument('out', help='the delta to write')
    size = one.add_mutually_exclusive_group()
    size.add_argument('--rank', type=int, default=8, help="of LoRA's factors (default: %(default)s)")
    size.add_argument('--k', type=int, help='instead of factors: the largest changes, so many a neuron on the mean')
    one.add_argument('--config', help='of the run (default: what the checkpoint says)')
    one.add_argument('--dtype', choices=['bf16', 'fp16'], help='write floats in half precision')
    args = parser.parse_args(argv)
    if args.verb == 'extract':
        extract(args)
        return
    with one_line_errors():
        paths = [place(file)[0] for file in args.files]
        read = [delta_file.read(path) for path in paths]
        if args.verb == 'verify':
            raise SystemExit(verify(paths[0], *read[0], place(args.files[0], args.base)[1]))
        dict(show=show, diff=diff, sizes=sizes)[args.verb](*paths, *read)


def rows(path, meta):
    """(what, text) of the metadata."""
    yield 'file', f'{path}, {os.path.getsize(path):,} bytes, format {meta["version"]}'
    for trunk in meta['trunks']:
        options = ', '.join(f'{key}={value!r}' for key, value in trunk['method'].items() if key != 'type')
        yield 'method', f'{trunk["method"]["type"]}({options})'
        kind = (trunk['config'] or {}).get('type', trunk['type'])
        yield 'trunk', f'{kind} at {trunk["prefix"] or "the top"}' + ('' if trunk['config'] else ', no config of it')
        yield 'base', trunk['base'] or 'not recorded'
        yield 'sha256', f'{trunk["sha256"]} of {trunk.get("parameters", "?"):,} frozen parameters'
    yield 'config', told(meta)
    yield 'classes', ', '.join(map(str, meta['dataset_meta'].get('classes') or ())) or 'not recorded'
    yield 'averaged', 'yes (EMA)' if meta.get('averaged') else 'no'
    yield 'commit', meta.get('commit') or 'not recorded'
    if meta.get('blend'):
        yield 'blend', str(meta['blend'])


def told(meta):
    """A line on the config that a delta belongs to."""
    if meta.get('config') is None:
        return 'not recorded'
    cfg = heard(meta['config'])
    heads = [f'{key} {value["type"]}' for key, value in cfg.model.items()
             if key.endswith('head') and isinstance(value, dict) and 'type' in value]
    return f'{cfg.scope}: {cfg.model.type}' + (f' with {", ".join(heads)}' if heads else '')


def show(path, read):
    tensors, meta = read
    grid = Table.grid(padding=(0, 2))
    for what, text in rows(path, meta):
        grid.add_row(what, text)
    total = sum(value.numel() for value in tensors.values())
    grid.add_row('entries', f'{len(tensors)}, {total:,} numbers')
    console.print(grid)


def group(name, prefixes):
    """Where an entry belongs: the trunk's part and the leaf, or neck and heads."""
    for prefix in prefixes:
        if name.startswith(prefix):
            inside = name[len(prefix):]
            return f'{prefix}{re.sub(r"[.][0-9]+(?=[.])", ".*", f".{inside}")[1:]}'
    return '.'.join(name.split('.')[:2]) if name.startswith('roi_head') else name.partition('.')[0]


def sizes(path, read):
    tensors, meta = read
    prefixes = [trunk['prefix'] for trunk in meta['trunks'] if trunk['prefix']]
    packed = {name: -(-value.numel() * meta['packed'][name][0] // 8) + 8 for name, value in tensors.items()
              if name in meta['packed']}
    found = defaultdict(lambda: [0, 0, 0, set()])
    for name, value in tensors.items():
        if name.endswith('_statistics') and name.removesuffix('_statistics') in packed:
            continue
        row = found[group(name, prefixes)]
        row[0] += 1
        row[1] += value.numel()
        row[2] += packed.get(name, value.nbytes)
        row[3].add(f'{meta["packed"][name][0]} bit' if name in packed else str(value.dtype).removeprefix('torch.'))
    total = sum(row[2] for row in found.values())
    table = Table(box=None, pad_edge=False)
    for head in ('part', 'entries', 'numbers', 'bytes', '%', 'type'):
        table.add_column(head, justify='left' if head in ('part', 'type') else 'right', overflow='fold')
    for part, (entries, numbers, count, kinds) in sorted(found.items(), key=lambda item: -item[1][2]):
        table.add_row(part, f'{entries}', f'{numbers:,}', f'{count:,}', f'{100 * count / max(total, 1):.1f}',
                      ', '.join(sorted(kinds)))
    trunk = sum(row[2] for part, row in found.items() if part.startswith(tuple(prefixes)) or not prefixes)
    table.add_row('all', f'{len(tensors)}', f'{sum(row[1] for row in found.values()):,}', f'{total:,}', '100.0', '')
    console.print(table)
    console.print(f'trunk and method {trunk:,} bytes, neck and heads {total - trunk:,}, header and text '
                  f'{os.path.getsize(path) - total:,}')


def verify(path, tensors, meta, base):
    """The exit code: 0 where all is well."""
    wrong = 0

    def say(name, check):
        nonlocal wrong
        try:
            console.print(f'ok      {name}: {check()}')
        except ValueError as error:
            wrong = 1
            console.print(f'amiss   {name}: {error}')

    say('file', lambda: f'{len(tensors)} entries, checksum right')
    odd = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]

    def finite():
        if odd:
            raise ValueError(f'NaN or infinite: {", ".join(odd[:3])}')
        return 'all numbers are finite'

    say('values', finite)
    say('config', lambda: told(meta))
    for trunk in meta['trunks']:
        def same(trunk=trunk):
            made = rebuilt(path, trunk, base, sum(value.numel() for value in tensors.values()))
            find_base(made, path, trunk, base)
            return f'{base or trunk["base"]} holds the trunk, sha256 {trunk["sha256"][:12]}...'
        say('base', same)
    return wrong


def diff(a, b, first, second):
    (one, meta), (two, other) = first, second
    table = Table(box=None, pad_edge=False)
    for head in ('', a, b):
        table.add_column(head, overflow='fold')
    left, right = dict(rows(a, meta)), dict(rows(b, other))
    for what in dict.fromkeys([*left, *right]):
        if left.get(what) != right.get(what) and what != 'file':
            table.add_row(what, left.get(what, ''), right.get(what, ''))
    for name in [*(name for name in one if name not in two), *(name for name in two if name not in one)]:
        table.add_row(name, *('x' if name in here else '' for here in (one, two)))
    shapes = [name for name in one if name in two and one[name].shape != two[name].shape]
    for name in shapes:
        table.add_row(name, str(tuple(one[name].shape)), str(tuple(two[name].shape)))
    console.print(table)
    both = [name for name in one if name in two and name not in shapes]
    moved = {name: float((one[name].double() - two[name].double()).norm() / one[name].double().norm().clamp(min=1e-30))
             for name in both if not one[name].equal(two[name].to(one[name].dtype))}
    console.print(f'{len(both) - len(moved)} entries are equal, {len(moved)} have other values')
    for name, distance in sorted(moved.items(), key=lambda item: -item[1])[:10]:
        console.print(f'  {name}: |a - b| / |a| = {distance:.3g}')


def extract(args):
    """Write the delta; say how much of the change it does not have."""
    with quiet() as say, trusting(args.trust_checkpoint):
        if not args.out.endswith('.safetensors'):
            raise ValueError(f'{args.out}: the name of a delta ends in .safetensors')
        say('comparing')
        config = load_config(args.config) if args.config else None
        model, record = extract_files(args.base, args.tuned, config, rank=args.rank, k=args.k)
        e3va.save_delta(model, args.out, dtype=args.dtype, **record)
    _, trunk = find_tuned(model)
    lost = dict(sorted(trunk.extraction.items(), key=lambda item: -item[1]))
    total = lost.pop('')
    how = trunk.tuning.method.config
    console.print(f'{args.out}: {os.path.getsize(args.out):,} bytes (the checkpoint {os.path.getsize(args.tuned):,}); '
                  f'{how["type"]} on {len(lost)} layers, {len(how.get("also", ()))} parts whole')
    console.print(f'lost: {total:.1%} of the change of the weights (|W_tuned - W - delta| / |W_tuned - W|); most in')
    for name, share in list(lost.items())[:5]:
        console.print(f'  {name}: {share:.1%}')


if __name__ == '__main__':
    main()
