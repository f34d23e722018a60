r"""Choose a variant of a method for each task by its validation results, and give the test results of the chosen ones.

    python tools/analysis_tools/choose.py results.jsonl --of pear_lora,pear_lora_da,pear_lora_sba --name "Pear (best)"

A row is a line of JSON with `task`, `method`, `seed`, `split` ('val' or 'test') and `value`. For each task the method
with the best mean over its seeds on 'val' is chosen, the first one on a tie; its rows on 'test' are printed as rows of
the method `--name`, with `chosen`, ready for averages.py. A task whose chosen method was not tested is told to stderr:
the test set is needed for that one alone.
"""
import argparse
import json
import sys
from collections import defaultdict
from statistics import fmean as mean

from e3va.command import rows as result_rows
from e3va.command.line import one_line_errors


def read(files, methods):
    """{task: {split: {method: {seed: row}}}} of the rows of some methods."""
    found = defaultdict(lambda: dict(val=defaultdict(dict), test=defaultdict(dict)))

    def taken(row):
        if row['method'] in methods:
            row['value'] = float(row['value'])
            return row, found[row['task']][row['split']][row['method']]

    for place, one in result_rows.read(files, taken, "task, method, split ('val' or 'test') and value"):
        if one is None:
            continue
        row, rows = one
        seed = row.get('seed', 0)
        if seed in rows:
            raise ValueError(f'{place}: a second value of {row["task"]}, {row["method"]}, {row["split"]}, seed {seed}; '
                             'give each run once, and one metric')
        rows[seed] = row
    if not found:
        raise ValueError(f'{", ".join(map(str, files))}: no row of {", ".join(methods)}')
    return found


def choose(splits, methods, task):
    """The method with the best validation mean; ValueError where they were not all validated on the same seeds."""
    seeds = {method: sorted(splits['val'][method]) for method in methods}
    if any(found != seeds[methods[0]] or not found for found in seeds.values()):
        raise ValueError(f'{task}: the choice needs every method on val, by the same seeds; found '
                         + ', '.join(f'{method} {found or "none"}' for method, found in seeds.items()))
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
