"""How memory and time grow with the image, the batch, the rank or the depth, and the straight line that they follow."""
import copy
import dataclasses
import re

import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console

from ..files.whole import save_figure
from ..methods import build_method
from .measure import measure
from .plot import MIB, clean
from .table import number, short, table

UNITS = dict(size='megapixels of an image', batch='images of a batch', rank='rank', depth='blocks of the trunk')
FITTED = dict(saved_bytes=('saved for backward', 'MiB', MIB), total_bytes=('with weights, gradients, Adam', 'MiB', MIB),
              step_ms=('time of a step', 's', 1e3))


def parse(text):
    """('batch', [1, 2, 4, 8]) of 'batch=1,2,4,8'; sizes are (H, W), of 'size=240x400,...'. ValueError if it is not so.
    """
    over, equals, values = text.partition('=')
    pattern = r'\d+x\d+' if over == 'size' else r'\d+'
    values = values.split(',')
    if over not in UNITS or not equals or len(set(values)) < 2 or not all(re.fullmatch(pattern, v) for v in values):
        raise ValueError(f'--over {text}: write e.g. size=240x400,480x800 or batch=1,2,4,8; it goes over '
                         f'{", ".join(UNITS)}, in at least two different whole numbers')
    return over, [tuple(map(int, value.split('x'))) if over == 'size' else int(value) for value in values]


def sweep(cfg, specs, over, values, size, images, say=lambda text: None, **options):
    """Rows of `measure` at each value, with the keys `over` and `x`, the value in its unit of UNITS."""
    rows = []
    for value in values:
        def said(text):
            say(f'{over} {value}: {text}')
        at, methods = copy.deepcopy(cfg), specs
        if over == 'depth':
            deepen(at, value)
        if over == 'rank':
            methods = [with_rank(spec, value) for spec in specs]
        found = measure(at, methods, value if over == 'size' else size, value if over == 'batch' else images, say=said,
                        **options)
        x = value[0] * value[1] / 1e6 if over == 'size' else value
        rows += [dict(row, over=over, x=x) for row in found]
    return rows


def with_rank(spec, rank):
    """A spec with this rank, if its method has one."""
    method = copy.deepcopy(spec.method)
    if hasattr(build_method(method.method), 'rank'):
        method.method.rank = rank
    return dataclasses.replace(spec, method=method)


def deepen(cfg, blocks):
    """Give the trunk this number of blocks in all, in place: a Swin's or ConvNeXt's third stage takes them."""
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    place, key = next(((place, key) for place in (backbone, backbone.get('arch')) if isinstance(place, dict)
                       for key in ('depths', 'num_layers', 'depth') if place.get(key) is not None), (None, None))
    if place is None or (key == 'depths' and len(place[key]) < 3):
        raise ValueError('--over depth: the backbone of this config has neither depths of stages nor num_layers')
    if key != 'depths':
        place[key] = blocks
        return
    depths = list(place[key])
    depths[2] = blocks - sum(depths) + depths[2]
    if depths[2] < 1:
        raise ValueError(f'--over depth={blocks}: the other stages have {sum(depths) - depths[2]} blocks, and the '
                         'third needs one')
    place[key] = depths


def laws(rows):
    """{(method, key): (a, b, worst)} of a + b x, by least squares; worst is the largest distance, as a part of y."""
    found = {}
    for method in dict.fromkeys(row['method'] for row in rows):
        for key in FITTED:
            x, y = np.array([(row['x'], row[key]) for row in rows if row['method'] == method]).T
            b, a = np.polyfit(x, y, 1)
            found[method, key] = a, b, float(np.abs((a + b * x) / y - 1).max()) if y.all() else 0.
    return found


def tables(rows):
    """Each figure over x for each method, and the line that it follows, as text."""
    over, fits = rows[0]['over'], laws(rows)
    values = list(dict.fromkeys(row['x'] for row in rows))
    at = {(row['method'], row['x']): row for row in rows}
    console = Console(width=120, highlight=False)
    with console.capture() as captured:
        console.print(f'{rows[0]["config"]}, {rows[0]["dtype"]}, {rows[0]["device"]} ({rows[0]["threads"]} threads)')
        for key, (title, unit, size) in FITTED.items():
            columns = {f'{value:.3g}': lambda row, value=value: short(at[row['method'], value][key] / size)
                       for value in values}
            columns['a + b x'] = lambda row: ' + '.join(short(round(c / size, 2) + 0.)      # no minus before a zero
                                                        for c in fits[row['method'], key][:2]) + ' x'
            columns['off by\nat most'] = lambda row: number(100 * fits[row['method'], key][2], 1) + ' %'
            console.print(table(f'{title[0].upper()}{title[1:]}, {unit}; x: {UNITS[over]}',
                                [at[method, values[0]] for method in dict.fromkeys(row['method'] for row in rows)],
                                columns))
    return captured.get().rstrip()


def plot(rows, path):
    """The figures over x, a line a method, measured points on it."""
    over, fits = rows[0]['over'], laws(rows)
    figure, panels = plt.subplots(1, len(FITTED), figsize=(13, 4.2), layout='constrained')
    for axes, (key, (title, unit, size)) in zip(panels, FITTED.items()):
        if unit == 'MiB' and max(row[key] for row in rows) >= 2 ** 30:
            unit, size = 'GiB', 2 ** 30
        for i, method in enumerate(dict.fromkeys(row['method'] for row in rows)):
            x, y = zip(*((row['x'], row[key] / size) for row in rows if row['method'] == method))
            a, b, _ = fits[method, key]
            line = np.array([0 if over != 'rank' else min(x), max(x)])
            axes.plot(x, y, 'o', color=f'C{i}', label=method)
            axes.plot(line, (a + b * line) / size, color=f'C{i}', alpha=0.5)
        axes.set(title=title, ylabel=unit, xlabel=UNITS[over], xlim=(0, None), ylim=(0, None))
        clean(axes)
    panels[0].legend(frameon=False)
    head = rows[0]
    figure.suptitle(f'{head["config"]}, {head["dtype"]}, {head["device"]}', fontsize=11, x=0.01, ha='left')
    save_figure(figure, path, dpi=150)
    plt.close(figure)
