"""Measured results as JSON lines, a row a line: `task`, `method`, `seed`, `value` and what else was measured."""
import json
import math

SETTING = 'rate', 'factors_rate', 'backbone_rate', 'weight_decay'       # what a method may be tried with


def read(files, take, has):
    """Yield (place, take(row)) of each row of some files, `place` for messages; empty lines are left out.

    Args:
        files (iterable of path): JSON lines.
        take (callable): gets the row, a dict, and picks what it needs.
        has (str): what a row has, for the error.

    Raises:
        ValueError: a line that is no JSON, whose names are no texts, or of which `take` cannot pick.
    """
    for file in files:
        with open(file) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                place = f'{file}, line {number}'
                try:
                    taken = take(checked(json.loads(line)))
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise ValueError(f'{place}: a row has {has}; {error!r}') from error
                yield place, taken


def checked(row):
    """A row whose names are texts and whose settings are numbers, by which rows are told apart; ValueError."""
    for names, kinds, what in ((('task', 'method', 'split', 'metric'), str, 'text'),
                               (('seed', *SETTING), (int, float, type(None)), 'number')):
        for name in names:
            if name in row and not isinstance(row[name], kinds):
                raise ValueError(f'{name} is {str(row[name]):.80}, no {what}')
    return row


def setting_of(row):
    """What a row's method was tried with, in the order of `SETTING`; None where it says nothing."""
    return tuple(row.get(name) for name in SETTING)


def identity(row):
    """What tells a row from all others of one state of a task: a second one of it is a second value."""
    return row['task'], row['method'], setting_of(row), row.get('seed', 0), row.get('split', 'test')


def value_of(row):
    """The value of a row, a finite number; ValueError where it is none (JSON of Python has NaN too)."""
    number = float(row['value'])
    if not math.isfinite(number):
        raise ValueError(f'the value is {number}')
    return number


def seeds(files, take, has, of):
    """{key: {seed: value}} of the rows of some files that `take` takes.

    Args:
        files (iterable of path): JSON lines.
        take (callable): row -> (key, seed, value), the key a tuple of str; or None for a row that is left out.
        has (str): see `read`.
        of (str): what was looked for, for the error where no row is of it.

    Raises:
        ValueError: see `read`; a second value of a key and seed; no row.
    """
    found = {}
    for place, taken in read(files, take, has):
        if taken is None:
            continue
        key, seed, value = taken
        if seed in found.setdefault(key, {}):
            raise ValueError(f'{place}: a second value of {", ".join(key)}, seed {seed}; give each run once, and one '
                             'metric')
        found[key][seed] = value
    if not found:
        raise ValueError(f'{", ".join(map(str, files))}: no row of {of}')
    return found
