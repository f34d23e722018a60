"""The page of a check: gpu.md and its pictures, from the rows that are there."""
from pathlib import Path

import pictures
from record import read

MIB, GIB = 2**20, 2**30
# What the E3VA paper ticks in its Table 4 (Swin-L, COCO): (method, card in GB): images that fit.
PAPER = {('full', 11): 0, ('full', 16): 0, ('full', 24): 1, ('lora:rank=64', 11): 0, ('lora:rank=64', 16): 0,
         ('lora:rank=64', 24): 1, ('e3va', 11): 1, ('e3va', 16): 2, ('e3va', 24): 2}
# goal: (figure, method, of which method, in which group, at most)
CASCADE = 'coco_cascade, batch 1, fp32'
GOALS = {
    'E3VA exact: step at most 1.10 of Fixed': ('step_ms', 'e3va', 'fixed', 1.10),
    'E3VA exact: step at most 0.55 of Full': ('step_ms', 'e3va', 'full', 0.55),
    'E3VA exact: peak at least 55 % below Full (paper: 55 to 69 %)': ('peak_bytes', 'e3va', 'full', 0.45),
    'E3VA stream: step at most 1.45 of Fixed': ('step_ms', 'e3va:mode=stream', 'fixed', 1.45),
    'GPS: step at most 1.05 of LoRA': ('step_ms', 'gps', 'lora', 1.05)}
KERNELS = """A kernel for the highway (the adapter compiled, or one in Triton for down, GELU, up and their backward) is
worth building where that share is over 10 % on a card, and is kept where it is faster there (CONTRIBUTING.md)."""


def write(out):
    out, rows = Path(out), read(out)
    figures = measured(rows)
    shown = pictures.draw(out, figures)
    parts = [head(rows), summary(rows), environment(rows), tests(rows), goals(figures, rows), figure_tables(figures),
             largest(rows), training(rows), faults(rows)]
    text = '\n\n'.join(part for part in parts if part)
    text += ''.join(f'\n\n![{name}]({name})' for name in shown) + '\n'
    (out / 'gpu.md').write_text(text)


def measured(rows):
    """{group: {method: its row with what was planned}}."""
    plans = {row['case']: row for row in rows if 'planned_bytes' in row}
    found = {}
    for row in rows:
        if 'peak_bytes' in row:
            plan = plans.get(f'plan of {row["case"]}', {})
            group = row['case'].partition(': ')[0]
            found.setdefault(group, {})[row['method']] = dict(row, **{
                key: value for key, value in plan.items() if key.startswith('planned')})
    return found


def table(columns, lines):
    """Markdown."""
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |'
                     for line in [columns, ['---'] * len(columns), *lines]) if lines else ''


def head(rows):
    device = next((row['device'] for row in rows if not row['case'].startswith('plan of')), 'nothing')
    text = f'# e3va on {device}\n\n'
    if 'CPU' in device:
        text += ('**Not on a GPU**: `--device cpu`, thin trunks and small images. It shows that the check runs; times '
                 'and bytes here say nothing of a card.\n\n')
    if rows:
        text += ', '.join(f'{name} {version}' for name, version in rows[-1]['versions'].items())
        text += f'; commit {rows[-1]["commit"] or "unknown"}. Each number is a row of rows.jsonl.'
    return text


def summary(rows):
    parts = {}
    for row in rows:
        counts = parts.setdefault(row['part'], {'done': 0, 'failed': 0, 'not run': 0})
        counts[row['status']] += 1
    return table(['part', 'done', 'failed', 'not run'], [[part, *counts.values()] for part, counts in parts.items()])


def environment(rows):
    found = [row for row in rows if row['part'] == 'environment']
    machine = next((row for row in found if row['case'] == 'machine'), None)
    if machine is None:
        return ''
    text = f'## Machine\n\nPython {machine["python"]}, {machine["cores"]} cores, {machine["system"]}'
    if 'memory_gib' in machine:
        text += (f'; CUDA {machine["cuda"]}, capability {machine["capability"]}, {machine["memory_gib"]:.1f} GiB, '
                 f'{machine["processors"]} multiprocessors')
    distances = [[row['case'], f'{row["distance"]:.1e}'] for row in found if 'distance' in row]
    return text + '.\n\n' + table(["operator, against the CPU's", 'largest distance'], distances)


def tests(rows):
    found = [row for row in rows if row['part'] == 'tests' and '::' in row['case']]
    if not found:
        return ''
    counts = {}
    for row in found:
        counts.setdefault(row['case'].partition('::')[2].partition('[')[0], []).append(row)
    return '## Tests\n\n' + table(['test', 'passed', 'failed', 'skipped', 'seconds'], [
        [f'`{name}`', *(sum(row['status'] == status for row in group) for status in ('done', 'failed', 'not run')),
         f'{sum(row.get("seconds", 0) for row in group):.0f}'] for name, group in counts.items()])


def goals(figures, rows):
    there, lines = figures.get(CASCADE, {}), []
    on_cpu = any('CPU' in row['device'] for row in there.values())
    for goal, (figure, method, other, most) in GOALS.items():
        pair = there.get(method, {}), there.get(other, {})
        value = pair[0][figure] / pair[1][figure] if all(figure in row for row in pair) else None
        lines.append([goal, 'not measured' if value is None else f'{value:.2f}', verdict(value, most, on_cpu)])
    errors = [abs(error(row)) for group in figures.values() for row in group.values() if 'planned_bytes' in row]
    worst = max(errors, default=None)
    lines.append(['memory plan within 10 % of the peak',
                  'not measured' if worst is None else f'{100 * worst:.1f} % at most', verdict(worst, 0.10, on_cpu)])
    share = 1 - there['fixed']['step_ms'] / there['e3va']['step_ms'] if {'fixed', 'e3va'} <= {
        method for method, row in there.items() if 'step_ms' in row} else None
    share = '' if share is None else f"\n\nShare of E3VA's step above Fixed's: {100 * share:.0f} %. {KERNELS}"
    return ('## Goals\n\nCascade Mask R-CNN with Swin-L, 800x1333, batch 1, fp32'
            + (', thin and at 64x96.\n\n' if on_cpu else '.\n\n')
            + table(['goal', 'is', ''], lines) + share)


def verdict(value, most, on_cpu):
    return '' if value is None else 'says nothing of a card' if on_cpu else 'met' if value <= most else '**not met**'


def error(row):
    """Of the planned peak, of the measured one."""
    return row['planned_bytes'] / row['peak_bytes'] - 1


def figure_tables(figures):
    text = []
    for group, rows in figures.items():
        fixed, full = (rows.get(name, {}).get('step_ms') for name in ('fixed', 'full'))
        text.append(f'### {group}\n\n' + table(
            ['method', 'saved MiB', 'peak MiB', 'planned', 'error', 'reserved', 'device', 'step ms', '/ fixed',
             '/ full'],
            [[method, mib(row['saved_bytes']), mib(row['peak_bytes']), mib(row.get('planned_bytes')),
              f'{100 * error(row):+.1f} %' if 'planned_bytes' in row else '', mib(row.get('reserved_bytes')),
              mib(row.get('device_bytes')), f'{row["step_ms"]:.1f}' if 'step_ms' in row else '',
              *(f'{row["step_ms"] / other:.2f}' if other and 'step_ms' in row else '' for other in (fixed, full))]
             for method, row in rows.items()]))
    above = [row['device_bytes'] - row['peak_bytes'] for group in figures.values() for row in group.values()
             if 'device_bytes' in row]
    if above:
        text.append(f"Above the allocator's peak the device held {min(above) / GIB:.2f} to {max(above) / GIB:.2f} GiB: "
                    'the context of CUDA, and what the allocator keeps for later. `plan_memory.py --reserve` is to be '
                    f'at least {max(above) / GIB:.1f}.')
    return '## Figures\n\n' + '\n\n'.join(text) if text else ''


def mib(size):
    return '' if size is None else f'{size / MIB:,.0f}'


def largest(rows):
    found = {}
    for row in rows:
        if 'card_gb' in row:
            found.setdefault(row['method'], {})[row['card_gb']] = row
    if not found:
        return ''

    def cell(method, card, row):
        more = '+' if row['images'] == row['most'] else ''
        paper = PAPER.get((method, card))
        return f'{row["images"]}{more}' + ('' if paper is None else f' / {paper}')
    cards = sorted({card for row in found.values() for card in row})
    return ('### Largest batch that fits\n\nCascade Mask R-CNN with Swin-L; the allocator of this card limited. Behind '
            'the stroke: what Table 4 of the paper ticks, of batches 1 and 2.\n\n'
            + table(['method', *(f'{card} GB' for card in cards)], [
                [method, *(cell(method, card, row[card]) if card in row else '' for card in cards)]
                for method, row in found.items()]))


def training(rows):
    found = [row for row in rows if row['part'] == 'training' and row['status'] == 'done']
    steps = [[row['case'], f'{row["seconds_a_step"]:.3f}', f'{row["loss"]:.3f}', row['steps']] for row in found
             if 'seconds_a_step' in row]
    demo = [[row['method'], f'{row["value"]} {row["metric"]}', f'{row["train_s"]} s'] for row in found
            if 'train_s' in row]
    tables = [table(['run of tools/train.py', 'seconds a step', 'last loss', 'steps'], steps),
              table(['demo', 'score on val', 'time of its steps'], demo)]
    return '## Training\n\n' + '\n\n'.join(filter(None, tables)) if steps or demo else ''


def faults(rows):
    lines = [[row['status'], f'`{row["case"]}`', row.get('why', '').replace('|', '\\|')] for row in rows
             if row['status'] != 'done']
    return '## Failed, and not run\n\n' + table(['', 'case', 'why'], lines) if lines else ''
