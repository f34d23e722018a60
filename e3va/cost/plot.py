"""Measured rows as a plot of memory against time."""
import math

import matplotlib
from matplotlib.colors import to_rgba
from matplotlib.transforms import Bbox

matplotlib.use('Agg')                    # no display needed
from matplotlib import pyplot as plt  # noqa: E402

from ..files.whole import save_figure

FORMATS = ('.png', '.pdf', '.svg')
MIB = 2 ** 20
# where a name may stand beside its point: the nearest place that is free, in points of print
PLACES = [(distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle)))
          for distance in (9, 24, 42, 60, 80, 100) for angle in (0, 90, 180, 270, 45, 315, 135, 225, 20, 340, 70, 290)]


def plot(rows, path):
    """Memory against the time of a training step, a labelled point a method: the peak, and what is saved of it."""
    head = rows[0]
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.8), layout='constrained', sharex=True)
    for axes, key, title in zip(panels, ('peak_bytes', 'saved_bytes'),
                                ('peak of a step, weights and AdamW included', 'saved for backward')):
        unit, name = (2 ** 30, 'GiB') if max(row[key] for row in rows) >= 2 ** 30 else (MIB, 'MiB')
        for i, row in enumerate(rows):
            middle, low, high = (row[f'step_ms{end}'] / 1e3 for end in ('', '_min', '_max'))
            axes.errorbar(middle, row[key] / unit, xerr=[[middle - low], [high - middle]], fmt='o', markersize=8,
                          color=f'C{i}', ecolor=to_rgba(f'C{i}', 0.4), elinewidth=3)
        axes.set(title=title, ylabel=f'memory, {name}', xlabel='time of a training step, s (median, min to max)')
        axes.set_xlim(0, 1.25 * max(row['step_ms_max'] for row in rows) / 1e3)
        axes.set_ylim(0, 1.15 * max(row[key] for row in rows) / unit or 1)
        clean(axes)
        axes.annotate('better', (0.02, 0.02), (0.09, 0.09), xycoords='axes fraction', color='0.6', fontsize=9,
                      arrowprops=dict(arrowstyle='->', color='0.6'))
    figure.suptitle(f'{head["config"]}\n{head["height"]}x{head["width"]}, batch {head["batch"]}, {head["dtype"]}, '
                    f'{head["device"]}', fontsize=11, x=0.01, ha='left')
    figure.canvas.draw()                                        # places are known from here on
    figure.set_layout_engine('none')
    for axes in panels:
        label(axes, [row['method'] for row in rows])
    save_figure(figure, path, dpi=150)
    plt.close(figure)


def clean(axes):
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)


def label(axes, names):
    """Write a name beside each point (the errorbars of `axes`, in their order) where it covers nothing."""
    points = [container.lines[0].get_xydata()[0] for container in axes.containers]
    bars = [container.lines[2][0].get_segments()[0] for container in axes.containers]
    taken = [Bbox(axes.transData.transform(ends)).padded(7) for ends in [*zip(points, points), *bars]]
    taken += [text.get_window_extent() for text in axes.texts]
    for i, (name, point) in enumerate(zip(names, points)):
        for x, y in PLACES:
            text = axes.annotate(name, point, (x, y), textcoords='offset points', color=f'C{i}', weight='bold',
                                 ha='left' if x > 1 else 'right' if x < -1 else 'center',
                                 va='bottom' if y > 1 else 'top' if y < -1 else 'center')
            box = text.get_window_extent()
            if (axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max) and not box.count_overlaps(taken)
                    or (x, y) == PLACES[-1]):
                break
            text.remove()
        taken.append(box)
        if math.hypot(x, y) > 10:
            axes.annotate('', point, (x, y), textcoords='offset points',
                          arrowprops=dict(arrowstyle='-', color=f'C{i}', alpha=0.5, shrinkA=0, shrinkB=4))
