r"""Tables of results, a line a method: mean and deviation over seeds for each task, averages, the best ones marked.

    python tools/analysis_tools/compare.py results.jsonl [MORE ...]
    python tools/analysis_tools/compare.py work_dirs/sweep/rows.jsonl --cost cost.json --plot choice.png
    python tools/analysis_tools/compare.py work_dirs/sweep/rows.jsonl --claims

A row is a line of JSON with `task`, `method`, `seed`, `value` and, where there are several, `split`: those of 'test'
are taken. Where a method has several settings (rate, weight decay) of a task there, that counts which is best on 'val',
as in report.py. Tasks of VTAB-1k and FGVC (files of configs/_base_/tasks, e.g. vtab_dtd_vit_b, or without the trunk)
have tables of their own, in which the papers' printed numbers for ViT-B/16 stand below ours (printed.yml). VTAB-1k has
two averages in print, of the three groups (NOAH, Pear, DMLoRA) and of the nineteen tasks (GPS): both are given. A
method that lacks tasks gets none, and what it lacks is named. So is what was not tuned where others were.

For other tasks the average is of what a method gains, as a share of what `--one` gains over `--zero`, over the tasks
that tell these two apart: by more than three deviations of their seeds; with its standard error over the seeds. With
the rows of cost.py for `--cost`, memory and time stand beside it, and `--plot` draws one against the other; what
recomputes its blocks has the results of the method without. `--claims` holds the rows against what the papers claim
(claims.yml): two means are told apart where Welch's t-test of their seeds has p < 0.05. Three seeds tell little apart;
the sweep that made them adds more, by `--seeds 1 2 3 4 5 6`.
"""
import argparse
import json
import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import fmean as mean
from statistics import stdev, variance

import yaml

from e3va.command import rows
from e3va.command.line import one_line_errors
from e3va.datasets import fgvc, vtab

SUITES = dict(vtab=vtab.TASKS, fgvc=fgvc.TASKS)
TITLES = dict(vtab='VTAB-1k', fgvc='FGVC')
PRINTED = Path(__file__).with_name('printed.yml')
CLAIMS = Path(__file__).with_name('claims.yml')
HAS = 'task, method and value'
TRUNK = 'vit_b'                                                         # of the printed numbers
LEVEL = 0.05                                                            # of the test that tells two means apart


def read(files):
    """{(suite or '', trunk or ''): {task: {method: {seed: value}}}}."""
    results, tried, val = defaultdict(lambda: defaultdict(dict)), defaultdict(dict), None
    for (task, method, *setting), values in rows.seeds(files, partial(taken, 'test'), HAS, 'the test split').items():
        tried[task, method][(task, method, *setting)] = values
    for (task, method), settings in tried.items():
        if len(settings) > 1 and val is None:                           # read where it is needed, once
            val = rows.seeds(files, partial(taken, 'val'), HAS,
                             f'val, by which the settings of {task}, {method} are told apart')
        values = settings[max(settings, key=partial(mean_on, val)) if len(settings) > 1 else next(iter(settings))]
        suite, _, rest = task.partition('_')
        name = next((name for name in SUITES.get(suite, ()) if f'{rest}_'.startswith(f'{name}_')), None)
        if name is None:
            results['', ''][task][method] = values
        else:
            results[suite, rest[len(name) + 1:]][name][method] = values
    return results


def untuned(files):
    """Lines on the tasks where some methods have a single setting and others the best of several."""
    tried = defaultdict(lambda: defaultdict(set))
    for _, (task, method, setting, *_) in rows.read(files, rows.identity, HAS):
        tried[task][method].add(setting)
    for task, methods in tried.items():
        once = [method for method, settings in methods.items() if len(settings) == 1]
        if 0 < len(once) < len(methods):
            yield f'{task}: {", ".join(once)} at a single setting, the others at the best on val of several.'


def taken(split, row):
    if row.get('split', 'test') != split:
        return None
    setting = [f'{name} {row[name]}' for name in rows.SETTING if row.get(name) is not None]
    return (row['task'], row['method'], *setting), row.get('seed', 0), rows.value_of(row)


def mean_on(val, setting):
    """The mean of a setting's seeds on val; behind all others where it has none there."""
    return mean(val.get(setting, {0: float('-inf')}).values())


def printed(suite, methods):
    """[(label, numbers in the order of the suite's tasks)] of the papers' rows for some methods, in their order."""
    tables = [table for table in yaml.safe_load(PRINTED.read_text()) if table['suite'] == suite]
    return [(f'{method}, printed ({table["table"]})', row['values']) for method in methods for table in tables
            for row in table['rows'] if row['method'] == method]


# ---- averages

def averages(suite, values):
    """{column: number} over the tasks of a suite, {task: mean}; nothing where one is missing."""
    if set(values) != set(SUITES[suite]):
        return {}
    if suite == 'fgvc':
        return dict(mean=mean(values.values()))
    names = dict(natural='natural', specialized='specialized', structured='structured', groups='mean of groups',
                 tasks='mean of tasks')
    return {names[name]: value for name, value in vtab.averages(values).items()}


def apart(tasks, zero, one):
    """{task: (gain of `one` over `zero`, deviation of a seed)} where both have several seeds."""
    pairs = {task: [list(methods.get(name, {}).values()) for name in (zero, one)] for task, methods in tasks.items()}
    return {task: (mean(b) - mean(a), ((stdev(a) ** 2 + stdev(b) ** 2) / 2) ** 0.5)
            for task, (a, b) in pairs.items() if min(len(a), len(b)) > 1}


def gains(tasks, zero, one, counted):
    """{method: (its mean share of the gain of `one`, standard error)} of the methods that have all `counted` tasks.

    The error is that of the seeds, to first order: None for `zero` and `one`, which are 0 and 1 whatever their seeds
    are, and where a method has a single seed of a task.
    """
    found = {}
    for method in dict.fromkeys(method for methods in tasks.values() for method in methods):
        if counted and all(method in tasks[task] for task in counted):
            seeds = [[list(tasks[task][name].values()) for name in (method, zero, one)] for task in counted]
            shares = [(mean(values) - mean(low)) / (mean(high) - mean(low)) for values, low, high in seeds]
            error = None
            if method not in (zero, one) and all(len(values) > 1 for values, *_ in seeds):
                error = sum(of_share(share, *each) for share, each in zip(shares, seeds)) ** 0.5 / len(counted)
            found[method] = mean(shares), error
    return found


def weighed(tasks, zero, one):
    """(`apart`, the tasks that count, `gains` over these): those do that tell apart by three deviations of a seed."""
    told = apart(tasks, zero, one)
    counted = [task for task, (gain, deviation) in told.items() if gain > 3 * deviation]
    return told, counted, gains(tasks, zero, one, counted)


def of_share(share, values, low, high):
    """The square of a share's standard error."""
    return ((squared(values) + (1 - share) ** 2 * squared(low) + share ** 2 * squared(high))
            / (mean(high) - mean(low)) ** 2)


def squared(values):
    """The square of a mean's standard error."""
    return variance(values) / len(values)


def said(number, error, digits=2):
    """A number and, where it has one, its error."""
    return f'{number:.{digits}f}' if error is None else f'{number:.{digits}f} ± {error:.{digits}f}'


# ---- tables

def table(suite, tasks, share='', shares=None, beside=()):
    """A Markdown table.

    Args:
        share (str): the column of `shares`.
        shares (dict): {method: (number, error or None)}; the methods stand by it, those without behind them.
        beside (list): pairs (label, numbers of all tasks of the suite), rows that are not ours.
    """
    shares = shares or {}
    methods = dict.fromkeys(method for values in tasks.values() for method in values)
    methods = sorted(methods, key=lambda method: -shares.get(method, [float('-inf')])[0])
    order = [task for task in SUITES.get(suite, sorted(tasks)) if task in tasks]
    columns = {task: {method: mean(values.values()) for method, values in tasks[task].items()} for task in order}
    if suite:
        found = {method: averages(suite, {task: columns[task][method] for task in order if method in columns[task]})
                 for method in methods}
        for name in dict.fromkeys(name for values in found.values() for name in values):
            columns[name] = {method: values[name] for method, values in found.items() if values}
    last = [share] if shares else []
    lines = [['method', *columns, *last, 'seeds'], ['---'] * (2 + len(columns) + len(last))]
    for method in methods:
        counts = {len(values[method]) for values in tasks.values() if method in values}
        cells = [cell(values, method, tasks.get(name)) for name, values in columns.items()]
        cells += [said(*shares[method]) if method in shares else ''] * len(last)
        lines.append([method, *cells, '-'.join(map(str, sorted({min(counts), max(counts)})))])
    for label, values in beside:
        means = averages(suite, dict(zip(SUITES[suite], values)))
        shown = {**{task: f'{value:.1f}' for task, value in zip(SUITES[suite], values)},
                 **{name: f'{value:.2f}' for name, value in means.items()}}
        lines.append([label, *(shown[name] for name in columns), ''])
    text = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    for method in methods if suite else ():
        missing = [task for task in SUITES[suite] if method not in tasks.get(task, ())]
        if missing:
            text += f'\n\n{method} lacks {", ".join(missing)}.'
    return text


def cell(means, method, seeds):
    """A mean, the best one bold, with the deviation of its seeds where it is of a task and of several."""
    if method not in means:
        return ''
    several = list((seeds or {}).get(method, {}).values())
    text = said(means[method], stdev(several) if len(several) > 1 else None)
    return f'**{text}**' if means[method] == max(means.values()) else text


# ---- beside what it costs

def costs(path, methods):
    """{method as cost.py names it: (method whose results it has, saved of Full - Fixed, step / Fixed)}."""
    try:
        with open(path) as file:
            rows = json.load(file)
        found = {row['method']: (plain(row['method'], methods), row['saved_fraction'], row['step_to_fixed'])
                 for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is no file that cost.py wrote with --out, full and fixed among its methods: {error!r}'
                         ) from None
    return {name: values for name, values in found.items() if values[0]}


def plain(name, methods):
    """The method that gives the same numbers: itself, or without what runs blocks again and changes no gradient."""
    bare = re.sub(r'(?<=[:,])(recompute=block|mode=stream)\b,?', '', re.sub(r'-cp$', '', name)).rstrip(':,')
    return next((method for method in (name, bare) if method in methods), None)


def plot(found, shares, path):
    """Share of the gain against memory and against time; found: see `costs`."""
    from matplotlib.colors import to_rgba

    from e3va.cost.plot import clean, label, plt
    from e3va.files.whole import save_figure
    figure, panels = plt.subplots(1, 2, figsize=(12, 5.2), layout='constrained', sharey=True)
    titles = 'saved for backward, (method - fixed) / (full - fixed)', 'time of a training step / that of fixed'
    for i, (axes, title) in enumerate(zip(panels, titles), 1):
        for j, values in enumerate(found.values()):
            share, error = shares[values[0]]
            axes.errorbar(values[i], share, yerr=error or 0, fmt='o', markersize=8, color=f'C{j % 10}',
                          ecolor=to_rgba(f'C{j % 10}', 0.4), elinewidth=3)
        axes.set(xlabel=title)
        clean(axes)
    panels[0].set(ylabel='share of the gain')
    panels[0].set_xscale('symlog', linthresh=0.02)
    figure.canvas.draw()
    figure.set_layout_engine('none')
    for axes in panels:
        label(axes, list(found))
    save_figure(figure, path, dpi=150)
    plt.close(figure)


def chosen(tasks, args):
    """Text of the other tasks: their table, what tells apart, and with costs the table of the choice."""
    told, counted, shares = weighed(tasks, args.zero, args.one)
    share = f'share of the gain of {args.one}'
    text = table('', tasks, share, shares)
    if not told:
        text += f'\n\nNo {share} over {args.zero}: no task has several seeds of both.'
    for task, (gain, deviation) in told.items():
        text += (f'\n\n{task}: {args.one} - {args.zero} is {gain:.2f}, a seed deviates by {deviation:.2f}: '
                 + ('counted.' if task in counted else 'not told apart, not counted.'))
    if args.cost:
        found = costs(args.cost, list(shares))
        if not found:
            tasks = ', '.join(counted) or f'the tasks, of which none tells {args.zero} and {args.one} apart'
            raise ValueError(f'{args.cost}: none of its methods has rows for all of {tasks}')
        text += f'\n\n| method | {share} | saved of (full - fixed) | step / fixed |\n| --- | --- | --- | --- |'
        for name, (method, saved, step) in found.items():
            text += f'\n| {name} | {said(*shares[method])} | {saved:.3f} | {step:.2f} |'
        if args.plot:
            plot(found, shares, args.plot)
    return text


def difference(a, b):
    """(mean of a - mean of b, its standard error, p of Welch's t-test); the last two None where one has a single seed.

    Source: Welch, The generalization of "Student's" problem when several different population variances are involved,
    Biometrika 1947.
    """
    gain = mean(a) - mean(b)
    if min(len(a), len(b)) < 2:
        return gain, None, None
    error = (squared(a) + squared(b)) ** 0.5
    if error == 0:                                                      # no seed deviates
        return gain, error, float(gain == 0)
    from scipy.stats import ttest_ind_from_stats
    told = (number for values in (a, b) for number in (mean(values), stdev(values), len(values)))
    return gain, error, float(ttest_ind_from_stats(*told, equal_var=False).pvalue)


def verdict(relation, gain, p):
    if p is None:
        return 'one seed tells nothing'
    if p < LEVEL:
        return 'holds' if gain > 0 else 'does not hold'
    return 'not told apart, as it says' if relation == 'not below' else 'not told apart'


def claims(tasks):
    """Text: each claim that rows can be held against, a line a task."""
    lines = ['| paper | claim | task | difference | p | |', '| --- | --- | --- | --- | --- | --- |']
    for claim in yaml.safe_load(CLAIMS.read_text()):
        for other in claim['than']:
            for task, methods in sorted(tasks.items()):
                if {claim['method'], other} <= set(methods):
                    gain, error, p = difference(*(list(methods[name].values()) for name in (claim['method'], other)))
                    cells = [claim['paper'], f'{claim["method"]} {claim["relation"]} {other}', task,
                             f'{gain:+.2f}' + ('' if error is None else f' ± {error:.2f}'),
                             '' if p is None else f'{p:.3f}', verdict(claim['relation'], gain, p)]
                    lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) if lines[2:] else 'No rows of two methods of which a paper says which is better.'


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', metavar='FILE', help='JSON lines')
    parser.add_argument('--zero', default='fixed', metavar='METHOD', help='gains nothing (default: %(default)s)')
    parser.add_argument('--one', default='lora', metavar='METHOD', help='gains all of it (default: %(default)s)')
    parser.add_argument('--cost', metavar='ROWS.json', help='what cost.py wrote with --out')
    parser.add_argument('--plot', metavar='CHOICE.png', help='draw the gain against memory and time of --cost')
    parser.add_argument('--claims', action='store_true', help="hold the rows against the papers' claims")
    args = parser.parse_args(argv)
    if args.plot and not args.cost:
        parser.error('--plot draws against memory and time: give --cost too')
    with one_line_errors():
        for (suite, trunk), tasks in sorted(read(args.files).items()):
            methods = dict.fromkeys(method for values in tasks.values() for method in values)
            beside = printed(suite, methods) if trunk in ('', TRUNK) else ()
            text = table(suite, tasks, beside=beside) if suite else chosen(tasks, args)
            if args.claims:
                text += f'\n\n{claims(tasks)}'
            print(f'{TITLES.get(suite, "Tasks")}{", " * bool(trunk)}{trunk}\n\n{text}\n')
        for line in untuned(args.files):
            print(f'{line}\n')


if __name__ == '__main__':
    main()
