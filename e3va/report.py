"""What a tuned model trains and what it costs to store."""
from torch import nn

from .layers import Int8Linear, SparseWeight
from .layers.quantised import packed_bytes, quantised_entries
from .methods.routing import TABLE
from .trunks import head_entries
from .tuned import tuned_trunks


def changed(trunk):
    """Names of a tuned trunk's entries that belong to a delta: they are the method's, or train, or their module trains.

    A classifier inside the trunk belongs to it whole, as the model has it now.
    """
    keys, head = set(trunk.tuning.keys), head_entries(trunk)
    return {name for name in trunk.state_dict() if name not in keys or name in head or trains(trunk, name)}


def trains(trunk, name):
    if name in trunk.tuning.also:                                       # its buffers too
        return True
    parent, _, leaf = name.rpartition('.')
    module = trunk.get_submodule(parent)
    if module._parameters.get(leaf) is not None:
        return module._parameters[leaf].requires_grad
    if leaf == 'relative_position_index':                               # of Swin: a constant
        return False
    return any(parameter.requires_grad for parameter in module._parameters.values() if parameter is not None)


class Report(dict):
    """Counts of a tuned model; prints as a table.

    Keys:
        method, trunk (str): types.
        trained, frozen (int): parameters of the trunk and the method; neck and heads are not counted, as in the papers.
            Of SPT before its selection: the budget; the rows are then of what may train.
        trained_bytes, frozen_bytes (int): their bytes.
        delta_bytes (int): payload of the trained tensors of trunk and method, quantised ones in their bits, without
            file header, head and tables of indices (GPS) or of who serves whom (Pear).
        head (int): trained parameters outside: neck, heads, a timm model's classifier.
        rows (list of dict): name, shape, trained (count), bytes and part ('trunk', 'method' or 'head') of each
            trained entry.
    """

    def __str__(self):
        from rich.console import Console
        from rich.table import Table
        table = Table(title=f'{self["method"]} on {self["trunk"]}', title_justify='left')
        for title, justify in (('', 'left'), ('parameters', 'right'), ('MiB', 'right'), ('of the trunk', 'right')):
            table.add_column(title, justify=justify)
        total = self['frozen'] + sum(row['trained'] for row in self['rows'] if row['part'] == 'trunk')
        for title, count, size in (
                ('trained (trunk and method)', self['trained'], self['trained_bytes']),
                ('frozen', self['frozen'], self['frozen_bytes']),
                ('trained neck and heads', self['head'], None)):
            table.add_row(title, f'{count:,}', '' if size is None else f'{size / 2 ** 20:.2f}',
                          f'{100 * count / total:.2f} %' if total and size is not None else '')
        table.add_row('delta (payload)', '', f'{self["delta_bytes"] / 2 ** 20:.2f}', '')
        console = Console(width=100, force_jupyter=False)               # a notebook prints the text, too
        with console.capture() as captured:
            console.print(table)
        return captured.get().rstrip()


def report(model: nn.Module) -> Report:
    """Count what a tuned model (or trunk) trains; see `Report` for the keys. ValueError if it is not tuned.

    Of several tuned trunks in a model these are the sums.
    """
    trunks = tuned_trunks(model)
    masked = {module.weight: module.index.numel() for module in model.modules() if isinstance(module, SparseWeight)}
    heads = {prefix: head_entries(trunk) for prefix, trunk in trunks}
    rows, frozen, frozen_bytes = [], 0, 0
    for name, parameter in model.named_parameters():
        size = parameter.numel() * parameter.element_size()
        prefix, trunk = next((pair for pair in trunks if name.startswith(pair[0])), (None, None))
        outside = trunk is None or name[len(prefix):] in heads[prefix]
        if parameter.requires_grad:
            stock = trunk is not None and name[len(prefix):] in trunk.tuning.keys
            part = 'head' if outside else 'trunk' if stock else 'method'
            count = masked.get(parameter, parameter.numel())
            rows.append(dict(name=name, shape=tuple(parameter.shape), trained=count, bytes=size, part=part))
        elif not outside:
            frozen, frozen_bytes = frozen + parameter.numel(), frozen_bytes + size
    delta_bytes = 0
    for prefix, trunk in trunks:
        for module in trunk.modules():
            if isinstance(module, Int8Linear):                          # its weight is no parameter
                frozen += module.levels.numel()
                frozen_bytes += sum(value.numel() * value.element_size() for value in (module.levels, module.scale))
        bits = quantised_entries(trunk)
        left = heads[prefix] | {f'{name}_statistics' for name in bits}
        kept = changed(trunk) - left
        delta_bytes += sum(
            packed_bytes(value.numel(), bits[name]) if name in bits else value.numel() * value.element_size()
            for name, value in trunk.state_dict().items()
            if name in kept and value.is_floating_point() and not name.startswith(f'{TABLE}.'))
    inside = [row for row in rows if row['part'] != 'head']
    planned = [trunk.tuning.method.planned(trunk) for _, trunk in trunks]
    return Report(
        method=' and '.join(type(trunk.tuning.method).__name__ for _, trunk in trunks),
        trunk=' and '.join(type(trunk).__name__ for _, trunk in trunks),
        trained=sum(planned) if None not in planned else sum(row['trained'] for row in inside), frozen=frozen,
        trained_bytes=sum(row['bytes'] for row in inside), frozen_bytes=frozen_bytes, delta_bytes=delta_bytes,
        head=sum(row['trained'] for row in rows if row['part'] == 'head'), rows=rows)
