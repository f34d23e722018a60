r"""Count what methods train, and set it beside what the papers' tables print.

    python tools/analysis_tools/counts.py
    python tools/analysis_tools/counts.py --markdown        # the table of configs/baselines/README.md
    python tools/analysis_tools/counts.py --methods gps:k=1,gps:k=15,lora:rank=8        # of any methods, on each trunk

The rows and the trunks are in counts.yml. Each count is that of the method on the stock trunk in its real size, without
weights.
"""
import argparse
import copy
import functools
import warnings
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import torch
import yaml
from mmengine.registry import MODELS
from rich.console import Console
from rich.table import Table
from torch.overrides import TorchFunctionMode

import e3va
from e3va.command.line import one_line_errors
from e3va.cost.spec import parse
from e3va.trunks import FAMILIES, family_of

FILE = Path(__file__).with_suffix('.yml')
KEYS = {'row', 'printed', 'method', 'heads', 'note'}
COLUMNS = dict(table='left', row='left', trunk='left', method='left', parameters='right', printed='right',
               ours='right', difference='right', note='left')


class Weightless(TorchFunctionMode):
    """Parameters are made on the meta device: shapes without memory. What is computed from numbers stays real."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.empty, torch.zeros, torch.ones):
            kwargs['device'] = 'meta'
        return function(*args, **kwargs)


@functools.cache
def report(stock, method):
    """`e3va.report` of a method, as for `--method`, on a copy of a stock trunk."""
    trunk = copy.deepcopy(stock)
    with Weightless():
        e3va.tune(trunk, parse(method)[0].method.method)
    return e3va.report(trunk)


def count(stock, method):
    """Trained parameters."""
    return report(stock, method)['trained']


def heads(stock, classes):
    """Parameters of a linear classifier on a trunk, the mean over tasks with so many classes; a number is the count."""
    if isinstance(classes, int):
        return classes
    last = FAMILIES[family_of(stock)].out_norms(stock)[-1]
    return round(sum(classes) / len(classes) * (stock.get_submodule(last).weight.numel() + 1))


def in_unit(parameters, stock, printed, size=None):
    """Parameters, of `size` bytes (default: of float32), in the unit of a printed count, rounded to its decimals."""
    number, unit = printed.split()
    value = {'M': Decimal(parameters) / 10 ** 6, 'MB': Decimal(size or 4 * parameters) / 2 ** 20,
             '%': Decimal(100 * parameters) / sum(parameter.numel() for parameter in stock.parameters())}[unit]
    return value.quantize(Decimal(number), ROUND_HALF_UP)


def complete(row, table, stock, classes):
    """A row of the file with the columns that are computed."""
    if set(row) - KEYS or not set(row) >= {'row', 'printed', 'method'}:
        raise ValueError(f'{FILE.name}: the row {row} has not the keys row, printed, method and, where needed, heads '
                         'and note')
    trained, group = count(stock, row['method']), row.get('heads', table.get('heads'))
    classifier = heads(stock, classes[group]) if group else 0
    size = report(stock, row['method'])['delta_bytes'] + 4 * classifier
    ours = in_unit(trained + classifier, stock, row['printed'], size)
    number, unit = row['printed'].split()
    difference = ours - Decimal(number)
    return dict(table=table['table'], row=row['row'], trunk=table['trunk'], method=row['method'], parameters=trained,
                printed=row['printed'], ours=f'{ours} {unit}', difference=f'{difference:+}' if difference else '0',
                note=row.get('note', ''))


def weightless(data):
    """{name: stock trunk} of the file's trunks."""
    with Weightless():
        return {name: MODELS.build(config) for name, config in data['trunks'].items()}


def grid(methods, file=FILE):
    """A row for each method, as for `--methods` of cost.py: what it trains of each trunk, and of how much."""
    trunks = weightless(yaml.safe_load(file.read_text()))
    rows = []
    for spec in parse(methods):
        rows.append([spec.label])
        for stock in trunks.values():
            trained = count(stock, spec.label)
            rows[-1].append(f'{trained:,} ({in_unit(trained, stock, "0.00 %")} %)')
    return [['method', *trunks], *rows]


def rows(file=FILE):
    """The rows of the file, completed."""
    data = yaml.safe_load(file.read_text())
    trunks = weightless(data)
    return [complete(row, table, trunks[table['trunk']], data['heads'])
            for table in data['tables'] for row in table['rows']]


def cells(row):
    return [f'{row[column]:,}' if column == 'parameters' else row[column] for column in COLUMNS]


def markdown(lines):
    """Lists of cells, the titles first, as a table in Markdown."""
    lines = [lines[0], ['---'] * len(lines[0]), *lines[1:]]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--methods', metavar='NAME[:OPTION=VALUE,...],...',
                        help='count these on each trunk, instead of the papers\' rows')
    parser.add_argument('--markdown', action='store_true', help='print the table in Markdown')
    args = parser.parse_args(argv)
    with one_line_errors(), warnings.catch_warnings():
        warnings.simplefilter('ignore')                         # the libraries' words, not the user's
        lines = grid(args.methods) if args.methods else [list(COLUMNS), *map(cells, rows())]
    if args.markdown:
        print(markdown(lines))
        return
    table = Table(*lines[0])
    for column in table.columns:
        column.justify = COLUMNS.get(column.header, 'right')
    for line in lines[1:]:
        table.add_row(*line)
    Console(width=190).print(table)


if __name__ == '__main__':
    main()
