r"""Choose a variant of a method for each task by its validation results, and give the test results of the chosen ones.

    python tools/analysis_tools/choose.py results.jsonl --of pear_lora,pear_lora_da,pear_lora_sba --name "Pear (best)"

A row is a line of JSON with `task`, `method`, `seed`, `split` ('val' or 'test') and `value`. For each task the method
with the best mean over its seeds on 'val' is chosen, the first one on a tie; its rows on 'test' are printed as rows of
the method `--name`, with `chosen`, ready for compare.py. A task whose chosen method was not tested is told to stderr:
the test set is needed for that one alone.
"""
import argparse
import json
import sys
from collections import defaultdict
from functools import partial
from statistics import fmean as mean

from e3va.command.line import one_line_errors
from e3va.command.rows import seeds, value_of

HAS = "task, method, split ('val' or 'test') and value"


def read(files, methods):
    """{task: {split: {method: {seed: row}}}} of the rows of some methods."""
    found = defaultdict(lambda: dict(val=defaultdict(dict), test=defaultdict(dict)))
    of = ', '.join(methods)
    for (task, method, split), rows in seeds(files, partial(taken, methods), HAS, of).items():
        found[task][split][method] = rows
    return found


def taken(methods, row):
    if row['method'] not in methods:
        return None
    if row['split'] not in ('val', 'test'):
        raise ValueError(f'split {row["split"]}')
    return (row['task'], row['method'], row['split']), row.get('seed', 0), dict(row, value=value_of(row))


def choose(splits, methods, task):
    """The method with the best validation mean; ValueError where they were not all validated on the same seeds."""
    tried = {method: sorted(splits['val'][method]) for method in methods}
    if any(found != tried[methods[0]] or not found for found in tried.values()):
        raise ValueError(f'{task}: the choice needs every method on val, by the same seeds; found '
                         + ', '.join(f'{method} {found or "none"}' for method, found in tried.items()))
    return max(methods, key=lambda method: mean(row['value'] for row in splits['val'][method].values()))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', metavar='FILE', help='JSON lines')
    parser.add_argument('--of', required=True, help='the methods to choose from, with commas between')
    parser.add_argument('--name', help='the method of the rows that are printed (default: the first of --of, "(best)")')
    args = parser.parse_args(argv)
    with one_line_errors():
        methods = args.of.split(',')
        for task, splits in read(args.files, methods).items():
            chosen = choose(splits, methods, task)
            if not splits['test'][chosen]:
                print(f'{task}: {chosen}, not tested yet', file=sys.stderr)
            for row in splits['test'][chosen].values():
                print(json.dumps(dict(row, method=args.name or f'{methods[0]} (best)', chosen=chosen)))


if __name__ == '__main__':
    main()
