"""A page to look at of measured rows: sortable tables, accuracy against memory, time and size, curves, maps, pictures.

    python tools/analysis_tools/report.py work_dirs/sweep/rows.jsonl report.html --runs work_dirs/sweep
    python tools/analysis_tools/report.py ROWS [MORE ...] report.html --learned work_dirs/RUN
    python tools/analysis_tools/report.py ROWS report.html --pictures truth=FOLDER lora=FOLDER --images a b

Rows are lines of JSON with `task`, `method`, `seed`, `value` (as sweep.py and the demo write them). A method is shown
on each task by the setting that has rows of the test split, else by the one that is best on val. The page is one file
that needs no network: plotly is inside (4.8 MB), it opens from disk, in light and dark.
"""
import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))               # tools/, behind all packages

IMAGES = ('.jpg', '.jpeg', '.png', '.webp')
SHOWN = 6                                                               # images, where none are named


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('rows', nargs='+', metavar='ROWS', help='files of JSON lines')
    parser.add_argument('out', metavar='OUT', help='the page, a file that ends in .html')
    parser.add_argument('--title', default='Methods measured', help='default: %(default)s')
    parser.add_argument('--runs', nargs='+', default=[], metavar='FOLDER',
                        help='the learning curves of the runs below, and what sweep.py --pictures has drawn of them')
    parser.add_argument('--learned', nargs='+', default=[], metavar='RUN',
                        help='folders, checkpoints or deltas of runs with Pear, GPS or DMLoRA: their map or scales')
    parser.add_argument('--pictures', nargs='+', default=[], metavar='NAME=FOLDER',
                        help='predictions side by side: images of the same name in each folder (as of predict.py)')
    parser.add_argument('--images', nargs='+', default=[], metavar='NAME',
                        help=f'which of the --pictures (default: the first {SHOWN})')
    parser.add_argument('--zero', default='fixed', metavar='METHOD', help='gains nothing (default: %(default)s)')
    parser.add_argument('--one', default='lora', metavar='METHOD', help='gains all of it (default: %(default)s)')
    args = parser.parse_args(argv)
    if Path(args.out).suffix != '.html':
        parser.error(f'OUT, behind the ROWS, is a file that ends in .html, not {args.out}')
    if args.images and not args.pictures:
        parser.error('--images names some of --pictures: give those too')
    for given in args.pictures:
        if not all(given.partition('=')):
            parser.error(f'--pictures takes NAME=FOLDER, not {given}')
    return args


def main(argv=None):
    args = parse(argv)
    from e3va.command.line import one_line_errors  # first of all: it helps the stack import
    with one_line_errors():
        report(args)


def report(args):
    from reporting.document import Document
    from reporting.figures import looks, tradeoffs
    from reporting.results import read, views
    from reporting.runs import find

    from e3va.files.whole import write
    try:
        import plotly  # noqa: F401 the page needs its script
    except ImportError:
        raise ValueError('the page is drawn by plotly, which is not installed: pip install plotly') from None
    rows = read(args.rows)
    found, runs = views(rows), find(args.runs, rows)
    look = looks(dict.fromkeys(method for view in found for method in view.entries))
    page = Document(args.title)
    page.paragraph(facts(rows))
    if len(found) > 1:
        overview(page, found, look, args)
    left = list(runs)
    for view in found:
        page.heading(view.title)
        page.paragraph(says(view))
        methods(page, view, look)
        page.figures(tradeoffs(view, look))
        mine, left = of_view(view, left)
        draw_curves(page, mine, look)
        side_by_side(page, mine, list(view.entries))
    if runs and not any(run.rows for run in runs):                      # of train.py and tune.py: in no row
        page.heading('Runs')
        draw_curves(page, [(run.name, run) for run in runs], looks(run.name for run in runs))
    learned(page, args.learned)
    pictures(page, args)
    write(args.out, page.html())
    print(f'{args.out}: {len(rows)} rows, {len(look)} methods, {len(found)} tasks, {len(page.drawn)} figures')


# ---- tables

def facts(rows):
    count = len({row['method'] for row in rows})
    told = f'{len(rows)} rows, {count} method{"s" * (count > 1)}'
    for key, one, several in (('device', 'on', 'devices:'), ('commit', 'commit', 'commits')):
        values = sorted({str(row[key]) for row in rows if row.get(key)})
        if values:
            more = f' and {len(values) - 4} more' if len(values) > 4 else ''
            told += f'; {one if len(values) == 1 else several} {", ".join(values[:4])}{more}'
    return told + '.'


def says(view):
    told = f'{view.metric} on {view.split}; ± is the deviation of the seeds. '
    if len(view.compared) < len(view.entries):
        told += 'Those marked (val) have no score on test so far, and are compared with none. '
    told += 'Dotted: the Pareto front, on which no method is both cheaper and better.'
    if len(view.devices) > 1:
        told += f' Times are of different devices ({", ".join(view.devices)}), so do not compare all of them.'
    return told


def number(value, digits=2):
    return f'{value:,.{digits}f}' if value != int(value) or abs(value) < 1000 else f'{int(value):,}'


def score(entry, values=None, best=False):
    from statistics import fmean, stdev
    values = list((entry.values if values is None else values).values())
    if not values:
        return '', None
    spread = f' ± {stdev(values):.2f}' if len(values) > 1 else ''
    return f'{fmean(values):.2f}{spread}', fmean(values), best


def methods(page, view, look):
    """The table of a task."""
    from reporting.results import COSTS
    entries = sorted(view.entries.items(), key=lambda item: (item[1].split, -item[1].mean))
    costs = [cost for cost in COSTS if any(cost in entry.costs for _, entry in entries)]
    val = any(entry.split == 'test' and entry.val for _, entry in entries)
    tuned = any(entry.setting for _, entry in entries)
    head = ['method', view.split, *['val'] * val, *(COSTS[cost][1] for cost in costs), 'seeds',
            *['setting', 'settings tried'] * tuned]
    rows = []
    for method, entry in entries:
        mark = ' (val)' if entry.split != view.split else ''
        words, *rest = score(entry, best=entry is view.best)
        cells = [method, (words + mark, *rest), *[score(entry, entry.val) if entry.split == 'test' else ''] * val]
        cells += [(number(entry.costs[cost], 0 if cost in ('trained', 'delta_bytes') else 1), entry.costs[cost])
                  if cost in entry.costs else '' for cost in costs]
        setting = ', '.join(f'{key.replace("_", " ")} {value:g}' for key, value in entry.setting.items())
        rows.append((look[method], [*cells, len(entry.values), *[setting, len(entry.tried)] * tuned]))
    page.table(head, rows, view.title)


def overview(page, found, look, args):
    """All tasks: scores, and what each method gains of what args.one gains over args.zero."""
    from analysis_tools.compare import said, weighed
    from reporting.figures import against
    tasks = {view.title: {method: entry.values for method, entry in view.compared.items()} for view in found}
    _, counted, shares = weighed(tasks, args.zero, args.one)
    page.heading('All tasks')
    if shares:
        page.paragraph(f'Share: of what {args.one} gains over {args.zero}, the mean over the tasks that tell these two '
                       f'apart by more than three deviations of their seeds ({", ".join(counted)}), ± its standard '
                       'error.')
    head = ['method', *['share'] * bool(shares), *tasks]
    rows = []
    for method in sorted(look, key=lambda method: -shares.get(method, [float('-inf')])[0]):
        cells = [method] + [(said(*shares[method]), shares[method][0]) if method in shares else ''] * bool(shares)
        for view in found:
            entry = view.compared.get(method)
            cells.append(score(entry, best=entry is view.best) if entry else '')
        rows.append((look[method], cells))
    page.table(head, rows, 'all tasks')
    figures = []
    for cost, of, title in (('saved_mib', args.one, 'saved for backward'), ('train_s', args.zero, 'time of training')):
        points = [(method, ratio, *share) for method, share in shares.items()
                  if (ratio := relative(found, counted, method, of, cost)) is not None]
        if len(points) > 2:                                             # more than the two that make the scale
            figures.append(against(points, look, f'{title}, of that of {of}', 'share of the gain'))
    page.figures(figures)


def relative(views, counted, method, of, cost):
    """The mean over the counted tasks of a method's cost as a share of that of the method `of`; None where unknown."""
    ratios = []
    for view in views:
        if view.title in counted:
            both = [view.entries[name].costs.get(cost) for name in (method, of)]
            if None in both or not both[1]:
                return None
            ratios.append(both[0] / both[1])
    return sum(ratios) / len(ratios)


# ---- curves, maps, pictures

def of_view(view, runs):
    """([(method, run)] of what a view shows, the other runs)."""
    mine, left = [], []
    for run in runs:
        row = next((row for row in run.rows if row['task'] == view.task and row.get('metric') == view.metric
                    and row['method'] in view.entries), None)
        if row is None:
            left.append(run)
            continue
        entry = view.entries[row['method']]
        if row.get('seed', 0) in entry.values and all(row.get(key) == value for key, value in entry.setting.items()):
            mine.append((row['method'], run))
    return mine, left


def side_by_side(page, runs, methods):
    """The pictures that runs have drawn: a row an image, a column the truth or a method's first run."""
    folders = {}
    for method, run in sorted(runs, key=lambda each: (methods.index(each[0]), each[1].name)):
        if (run.folder / 'truth').is_dir():
            folders.setdefault('truth', run.folder / 'truth')
        if (run.folder / 'pictures').is_dir():
            folders.setdefault(method, run.folder / 'pictures')
    files = {name: images(folder) for name, folder in folders.items()}
    stems = [stem for stem in next(iter(files.values()), ()) if all(stem in found for found in files.values())]
    if stems:
        show_pictures(page, files, stems[:SHOWN])


def draw_curves(page, runs, look):
    from reporting import figures
    names = dict.fromkeys(name for _, run in runs for name in run.curves if name == 'loss' or name.count('/') == 1)
    found = []
    for name in names:
        lines = [(method, run.name, run.curves[name]) for method, run in runs if len(run.curves.get(name, ())) > 1]
        if not lines:                                                   # one validation, at the end
            continue
        found.append(figures.curves(lines, look, name, 'step' if name == 'loss' else 'epoch or step'))
    page.figures(found)


def learned(page, paths):
    from reporting.runs import learned as read
    for path in paths:
        found = read(path)
        if not found:
            raise ValueError(f'--learned {path}: it is of no run with Pear, GPS or DMLoRA, or merged')
        page.heading(f'{found[0]} ({Path(path).name})')
        page.figures([found[1]], one=True)


def pictures(page, args):
    """A row an image, a column a folder."""
    folders = {}
    for given in args.pictures:
        name, _, folder = given.partition('=')
        folders[name] = images(folder)
        if not folders[name]:
            raise ValueError(f'--pictures {given}: there is no image in this folder')
    if not folders:
        return
    common = [stem for stem in next(iter(folders.values())) if all(stem in files for files in folders.values())]
    stems = [Path(name).stem for name in args.images] or common[:SHOWN]
    missing = [stem for stem in stems if stem not in common]
    if missing or not stems:
        raise ValueError(f'--pictures: {", ".join(missing) or "no image"} is in all of {", ".join(folders)}; all have '
                         f'{", ".join(common[:8]) or "none"}')
    page.heading('Predictions')
    show_pictures(page, folders, stems)


def images(folder):
    return {path.stem: path for path in sorted(Path(folder).rglob('*')) if path.suffix.lower() in IMAGES}


def show_pictures(page, folders, stems):
    from tuning.page import picture
    page.pictures([[(picture(files[stem]), f'{name}: {stem}') for name, files in folders.items()] for stem in stems])


if __name__ == '__main__':
    main()
