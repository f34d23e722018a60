r"""Average results over the tasks of VTAB-1k and FGVC, for each method.

    python tools/analysis_tools/averages.py results.jsonl [MORE ...]

A row is a line of JSON with `task` (a file of configs/_base_/tasks without its trunk, e.g. vtab_dtd), `method`, `seed`
and `value`. Seeds are averaged first. VTAB-1k has two averages in print, of the three groups (NOAH, Pear, DMLoRA) and
of the nineteen tasks (GPS): both are given. A method that lacks tasks gets none, and what it lacks is named.
"""
import argparse
from collections import defaultdict
from statistics import fmean as mean

from e3va.command.line import one_line_errors
from e3va.command.rows import seeds
from e3va.datasets import fgvc, vtab

SUITES = dict(vtab=vtab.TASKS, fgvc=fgvc.TASKS)


def read(files):
    """{suite: {method: {task: {seed: value}}}} of all rows that belong to the two suites."""
    results = defaultdict(lambda: defaultdict(dict))
    for (task, method), values in seeds(files, taken, 'task, method and value', 'vtab_TASK or fgvc_TASK').items():
        suite, _, task = task.partition('_')
        results[suite][method][task] = values
    return results


def taken(row):
    found = (row['task'], row['method']), row.get('seed', 0), float(row['value'])
    suite, _, task = row['task'].partition('_')
    return found if task in SUITES.get(suite, ()) else None


def averages(suite, tasks):
    """{column: text} of one method's tasks, {task: {seed: value}}."""
    missing = [task for task in SUITES[suite] if task not in tasks]
    counts = {len(values) for values in tasks.values()}
    row = dict(tasks=f'{len(tasks)} of {len(SUITES[suite])}',
               seeds='-'.join(map(str, sorted({min(counts), max(counts)}))))
    if missing:
        return dict(row, missing=', '.join(missing))
    values = {task: mean(values.values()) for task, values in tasks.items()}
    if suite == 'fgvc':
        return dict(row, mean=f'{mean(values.values()):.2f}')
    found = vtab.averages(values)
    names = dict(natural='natural', specialized='specialized', structured='structured', groups='mean of groups',
                 tasks='mean of tasks')
    return dict(row, **{names[name]: f'{value:.2f}' for name, value in found.items()})


def table(suite, methods):
    """A Markdown table, a line a method."""
    rows = {method: averages(suite, tasks) for method, tasks in methods.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [['method', *columns], ['---'] * (1 + len(columns))]
    lines += [[method, *(row.get(column, '') for column in columns)] for method, row in rows.items()]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', metavar='FILE', help='JSON lines')
    args = parser.parse_args(argv)
    with one_line_errors():
        for suite, methods in read(args.files).items():
            print(f'{dict(vtab="VTAB-1k", fgvc="FGVC")[suite]}\n\n{table(suite, methods)}\n')


if __name__ == '__main__':
    main()
