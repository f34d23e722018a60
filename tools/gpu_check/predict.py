"""What plan_memory.py counts for the cases of figures.py, on a CPU beside it; started by figures.py without a card."""
import multiprocessing
import os

import cases
from record import Record, part_arguments

from e3va.cost.plan import plan


def main():
    args = part_arguments(__doc__)
    wanted = {}                                                         # (task, type): groups
    for group in cases.GROUPS:
        # half the bytes are half the bytes, and the CPU's autocast knows bf16 alone
        wanted.setdefault((group.task, 'fp32' if group.dtype == 'fp32' else 'bf16'), []).append(group)
    given = [(args, task, dtype, groups) for (task, dtype), groups in wanted.items()]
    processes = min(len(given), os.cpu_count() // 4)
    if processes <= 1:                                                  # another one would import the stack again
        for each in given:
            predict(*each)
        return
    with multiprocessing.get_context('spawn').Pool(processes) as pool:
        pool.starmap(predict, given, chunksize=1)


def predict(args, task, dtype, groups):
    """A row for each method of each group; what the compiler keeps is not counted."""
    record = Record(args.out, 'figures', 'cpu', args.seconds)
    with record.attempt(f'plan of {task}, {dtype}'):
        cfg, size = cases.config(task, reduced=args.device == 'cpu')
        specs = {each.label: each for group in groups for each in group.specs if 'compile' not in each.label}
        plans = {each.label: each for each in plan(cfg, list(specs.values()), size, dtype)[1]}
        for group in groups:
            for label in [each.label for each in group.specs if each.label in plans]:
                record.row(f'plan of {group.name}: {label}', planned_bytes=plans[label].peak(group.images),
                           planned_saved_bytes=plans[label].saved(group.images))


if __name__ == '__main__':
    main()
