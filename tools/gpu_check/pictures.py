"""The pictures of the page: memory against time, and what was planned against what was measured."""
import itertools
import re

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402

GIB = 2**30


def draw(out, figures):
    """Write the pictures that the rows allow; returns their names."""
    names = []
    first = next(((group, rows) for group, rows in figures.items()
                  if sum('step_ms' in row for row in rows.values()) > 1), None)
    if first:
        names.append(memory_time(out / 'memory_time.png', *first))
    pairs = [(group, method, row) for group, rows in figures.items() for method, row in rows.items()
             if 'planned_bytes' in row]
    if pairs:
        names.append(plan(out / 'plan.png', pairs))
    return names


def memory_time(path, group, rows):
    figure, axes = pyplot.subplots(figsize=(7, 5))
    timed = {method: row for method, row in rows.items() if 'step_ms' in row}
    for (method, row), marker in zip(timed.items(), itertools.cycle('os^vDP*X')):       # points lie upon each other
        axes.plot(row['step_ms'], row['peak_bytes'] / GIB, marker, markersize=8, alpha=0.8, label=method)
    axes.legend(fontsize=8, loc='upper left', bbox_to_anchor=(1.02, 1), borderaxespad=0)
    return save(figure, axes, path, group, 'ms of a training step', 'GiB at its peak')


def plan(path, pairs):
    figure, axes = pyplot.subplots(figsize=(6, 6))
    for group in dict.fromkeys(group for group, _, _ in pairs):
        rows = [row for other, _, row in pairs if other == group]
        axes.plot([row['peak_bytes'] / GIB for row in rows], [row['planned_bytes'] / GIB for row in rows], 'o',
                  label=group)
    end = max(max(row['peak_bytes'], row['planned_bytes']) for _, _, row in pairs) / GIB
    axes.fill_between([0, end], [0, 0.9 * end], [0, 1.1 * end], alpha=0.15, label='within 10 %')
    axes.legend(fontsize=7)
    return save(figure, axes, path, 'plan_memory.py', 'GiB measured', 'GiB planned')


def save(figure, axes, path, title, x, y):
    axes.set(xlabel=x, ylabel=y, xlim=(0, None), ylim=(0, None))
    axes.set_title(re.sub('_', ' ', title), fontsize=9)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, bbox_inches='tight')
    pyplot.close(figure)
    return path.name
