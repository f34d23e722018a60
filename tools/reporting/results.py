"""Rows to what the page shows: a view a task, in it an entry a method, of the setting that was best on val."""
import dataclasses
from collections import defaultdict
from statistics import fmean as mean
from statistics import stdev

from e3va.command import rows as files

BUDGET = ('shown', 'epochs')                                            # another one is another task
COSTS = dict(                                                           # key of a row: (title, short title)
    saved_mib=('saved for backward, MiB', 'saved, MiB'), peak_mib=('peak memory, MiB', 'peak, MiB'),
    train_s=('time of the training steps, s', 'training, s'),
    trained=('trained parameters in the trunk', 'trained'), delta_bytes=('delta, bytes', 'delta, bytes'))


@dataclasses.dataclass
class Entry:
    """A method on a task."""

    split: str                                                          # of what counts: test where there is one
    values: dict                                                        # {seed: value} of it
    val: dict                                                           # {seed: value}; empty where nothing was scored
    costs: dict                                                         # {key of COSTS: mean over the rows}
    setting: dict                                                       # {key of rows.SETTING: value}
    tried: list                                                         # (setting, mean on val) of all settings

    @property
    def mean(self):
        return mean(self.values.values())

    @property
    def spread(self):
        return stdev(self.values.values()) if len(self.values) > 1 else None


@dataclasses.dataclass
class View:
    """A task, scored by one metric, under one budget."""

    task: str
    metric: str
    title: str
    entries: dict                                                       # {method: Entry}
    devices: list

    @property
    def split(self):
        return 'test' if any(entry.split == 'test' for entry in self.entries.values()) else 'val'

    @property
    def compared(self):
        """{method: entry} of those that were scored on the same split; others are in the table alone."""
        return {method: entry for method, entry in self.entries.items() if entry.split == self.split}

    @property
    def best(self):
        return max(self.compared.values(), key=lambda entry: entry.mean)


def read(paths):
    """All rows of some files of JSON lines."""
    return [row for _, row in files.read(paths, whole, 'task, method, seed and value')]


def whole(row):
    """A row with what it may leave out."""
    return dict(row, task=row['task'], method=row['method'], value=files.value_of(row), seed=row.get('seed', 0),
                split=row.get('split', 'test'), metric=row.get('metric', 'score'))


def views(rows):
    """The views of some rows, in the order in which their tasks come.

    Raises:
        ValueError: no row; two values of one run.
    """
    if not rows:
        raise ValueError('there is no row in these files: nothing to report')
    groups = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row['task'], row['metric'], tuple(row.get(key) for key in BUDGET)][row['method']].append(row)
    titles = {key: title(key, groups) for key in groups}
    return [View(key[0], key[1], titles[key], {method: entry(found) for method, found in methods.items()},
                 sorted({str(row['device']) for found in methods.values() for row in found if row.get('device')}))
            for key, methods in groups.items()]


def title(key, groups):
    """The task, and what tells it from the other ones of its name."""
    others = [other for other in groups if other[0] == key[0] and other != key]
    words = [key[0]]
    if any(other[1] != key[1] for other in others):
        words.append(key[1])
    for i, (name, text) in enumerate(zip(BUDGET, ('{} px', '{} epochs'))):
        if any(other[2][i] != key[2][i] for other in others) and key[2][i] is not None:
            words.append(text.format(key[2][i]))
    return ', '.join(words)


def entry(rows):
    """Of all settings of a method on a task the one that was scored on test; of several the best on val."""
    settings = defaultdict(list)
    for row in rows:
        settings[tuple(row.get(key) for key in files.SETTING)].append(row)
    scores = {key: {split: by_seed([row for row in found if row['split'] == split]) for split in ('val', 'test')}
              for key, found in settings.items()}
    means = {key: mean(found['val'].values()) for key, found in scores.items() if found['val']}
    key = max(scores, key=lambda each: (bool(scores[each]['test']), means.get(each, float('-inf'))))
    val, test = scores[key]['val'], scores[key]['test']
    if test:                                                            # a seed that only chose is none of the result
        val = {seed: value for seed, value in val.items() if seed in test}
    counted = [row for row in settings[key] if row['seed'] in (test or val)]
    costs = {name: mean(known) for name in COSTS
             if (known := [float(row[name]) for row in counted if row.get(name) is not None])}
    named = {each: {name: value for name, value in zip(files.SETTING, each) if value is not None} for each in scores}
    return Entry('test' if test else 'val', test or val, val, costs, named[key],
                 [(named[each], value) for each, value in means.items()])


def by_seed(rows):
    found = {}
    for row in rows:
        if row['seed'] in found:
            what = ', '.join(str(row[key]) for key in ('task', 'method', 'split', 'metric'))
            raise ValueError(f'a second value of {what}, seed {row["seed"]}: give the rows of each run once')
        found[row['seed']] = row['value']
    return found


def front(points):
    """The (cost, value) pairs than which none is both cheaper and better, from the cheapest on."""
    kept = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or value > kept[-1][1]:
            kept.append((cost, value))
    return kept
