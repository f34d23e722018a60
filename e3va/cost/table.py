"""Measured rows as tables that fit a terminal."""
from rich.console import Console
from rich.table import Table

MIB = 2 ** 20
COLUMNS = dict(
    method='as given to --methods',
    trained='trained parameters of trunk and method',
    trained_head='trained parameters of neck and heads',
    delta_bytes='payload of what is trained in trunk and method',
    kept_bytes='weights, buffers, gradients and moments of AdamW of the whole model',
    saved_bytes='what autograd keeps for backward: storages, each once, without parameters and buffers',
    total_bytes='kept and saved together',
    total_to_full='total_bytes / that of full',
    alive_bytes='storages that the forward allocated and that are there when it has given its loss: confirms saved',
    peak_bytes='most that is allocated in a training step, weights and moments included. On CUDA by its allocator, '
               'else counted where operators are dispatched: what a kernel takes inside is not seen',
    forward_gflops='of a training step; a multiplication with its addition is two, mmcv\'s own operators are not seen',
    backward_gflops='the same, what is computed again included',
    step_ms='median time of a training step: preprocessing, forward, backward, AdamW',
    step_ms_min='', step_ms_max='',
    step_to_fixed='step_ms / that of fixed',
    step_to_full='step_ms / that of full',
    saved_fraction='(saved - that of fixed) / (that of full - that of fixed)',
    inference_ms='median time of the trunk alone, merged where the method can be',
    inference_ms_min='', inference_ms_max='',
    inference_to_stock='inference_ms / that of the stock trunk',
    inference_peak_bytes='most that is allocated in it, beside the weights',
    inference_peak_to_stock='',
    added_parameters='beyond those of the stock trunk, at inference',
    added_gflops='beyond those of the stock trunk, at inference',
    added_gflops_fraction='of those of the stock trunk')


def tables(rows):
    """The rows as text, at most 120 columns wide."""
    head = rows[0]
    text = [f'{head["config"]}: {head["height"]}x{head["width"]}, batch {head["batch"]}, {head["dtype"]}',
            f'{head["device"]} ({head["threads"]} threads), torch {head["torch"]}; random weights, generated '
            'images and truth']
    memory = table('Training memory in MiB', rows, {
        'trained': lambda row: f'{row["trained"]:,}',
        'delta': lambda row: mib(row['delta_bytes'], 2),
        'weights, grads,\nAdam': lambda row: mib(row['kept_bytes']),
        'saved for\nbackward': lambda row: mib(row['saved_bytes']),
        '(method - fixed)\n/ (full - fixed)': lambda row: number(row.get('saved_fraction'), 3),
        'all of\nthese': lambda row: mib(row['total_bytes']),
        '/ full': lambda row: number(row.get('total_to_full'), 3),
        'alive after\nforward': alive,
        'peak of\na step': lambda row: mib(row['peak_bytes'])})
    time = table('Time of a training step', rows, {
        'GFLOPs forward': lambda row: short(row['forward_gflops']),
        'backward': lambda row: short(row['backward_gflops']),
        'median ms': lambda row: short(row['step_ms']),
        'min to max': lambda row: f'{short(row["step_ms_min"])} to {short(row["step_ms_max"])}',
        '/ fixed': lambda row: number(row.get('step_to_fixed'), 2),
        '/ full': lambda row: number(row.get('step_to_full'), 2)})
    inference = table('Inference of the trunk, merged where the method can be', rows, {
        'added\nparameters': lambda row: f'{row["added_parameters"]:,}',
        'added\nGFLOPs': lambda row: f'{short(row["added_gflops"])} ({100 * row["added_gflops_fraction"]:.1f} %)',
        'median ms': lambda row: short(row['inference_ms']),
        'min to max': lambda row: f'{short(row["inference_ms_min"])} to {short(row["inference_ms_max"])}',
        '/ stock': lambda row: number(row['inference_to_stock'], 2),
        'peak MiB\nbeside weights': lambda row: mib(row['inference_peak_bytes']),
        'peak\n/ stock': lambda row: number(row['inference_peak_to_stock'], 2)})
    console = Console(width=120, highlight=False)
    with console.capture() as captured:
        for part in (*text, memory, time, inference):
            console.print(part)
    return captured.get().rstrip()


def table(title, rows, columns):
    out = Table(title=title, title_justify='left', title_style='bold')
    out.add_column('', overflow='fold')
    for name in columns:
        out.add_column(name, justify='right')
    for row in rows:
        out.add_row(row['method'], *(cell(row) for cell in columns.values()))
    return out


def number(value, digits):
    return '-' if value is None else f'{value:,.{digits}f}'


def short(value):
    """With the digits that matter."""
    return number(value, 0 if value >= 100 or not value else 1 if value >= 10 else 2)


def mib(size, digits=1):
    return number(size / MIB, digits)


def alive(row):
    """Bytes alive after the forward, with their distance from the saved ones where it is more than 5 %."""
    apart = row['alive_bytes'] / row['saved_bytes'] - 1 if row['saved_bytes'] else 0
    return mib(row['alive_bytes']) + (f' ({100 * apart:+.0f} %)' if abs(apart) > 0.05 else '')
