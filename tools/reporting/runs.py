"""What folders of runs hold for the page: their curves, and what Pear, GPS or DMLoRA has learned there."""
import dataclasses
import json
import math
from pathlib import Path

from e3va.command.rows import identity
from e3va.train.saved_run import run_of

KEPT = 300                                                              # points of a curve


@dataclasses.dataclass
class Run:
    """A folder in which something was trained."""

    folder: Path
    name: str
    rows: list                                                          # those that it has left, as of sweep.py
    curves: dict                                                        # {scalar: {step: value}}


def find(folders, rows=()):
    """The runs below some folders: each that has vis_data/scalars.json in it or in a start of it.

    Of those that have left rows those whose are among `rows`: others are of a config of before.
    """
    found = {}
    for top in map(Path, folders):
        if not top.is_dir():
            raise ValueError(f'--runs: there is no folder {top}')
        for file in sorted(top.rglob('vis_data/scalars.json')):
            found.setdefault(file.parents[2], (top, []))[1].append(file)
    if folders and not found:
        raise ValueError(f'--runs: no run has left a vis_data/scalars.json below {", ".join(map(str, folders))}')
    known = set(map(result, rows))
    runs = [Run(folder, str(folder.relative_to(top)) if folder != top else folder.name, rows_of(folder), scalars(files))
            for folder, (top, files) in found.items()]
    return [run for run in runs if not run.rows or known & set(map(result, run.rows))]


def result(row):
    """A row and its value: a run of before an edit has another one."""
    return *identity(row), float(row['value'])


def rows_of(folder):
    rows = []
    for file in sorted(folder.glob('*.json')):
        try:
            content = json.loads(file.read_text())
        except ValueError:
            continue
        rows += [row for row in content if isinstance(row, dict) and {'task', 'method'} <= set(row)] if isinstance(
            content, list) else []
    return rows


def scalars(files):
    """The losses of the steps, and the scores of the validations over all starts of a run, later ones over earlier."""
    curves = {}
    for file in files:
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:                                          # the last line of a run that was killed
                continue
            for key, value in row.items():
                if (key == 'loss' or '/' in key) and isinstance(value, (int, float)) and math.isfinite(value):
                    curves.setdefault(key, {})[row.get('step', 0)] = value
    return {key: thin(dict(sorted(values.items()))) for key, values in curves.items()}


def thin(values):
    every = -(-len(values) // KEPT)
    return {step: value for i, (step, value) in enumerate(values.items()) if i % every == 0 or i == len(values) - 1}


def learned(path):
    """(what it is, the figure) of a checkpoint, a delta or a folder with one; None where there is none of the three."""
    from analysis_tools import plot_pear, plot_scales, plot_selection

    from . import figures
    state, backbone, prefix, _ = run_of(path)
    method = backbone.get('method') or {}
    if f'{prefix}{plot_pear.TABLE}.served_by' in state:
        return 'Pear: what serves where', figures.pear(plot_pear.rows(*plot_pear.read(path)))
    selected = plot_selection.rows(state)
    if selected:
        return 'GPS: where the selected weights are', figures.selection(selected)
    scales = plot_scales.rows(state, prefix, method.get('roles', ('q', 'v')))
    if scales:
        return 'DMLoRA: the scales that were learned', figures.scales(scales, method.get('scale', 1.))
    return None
