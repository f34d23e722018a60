"""What a tuned model trains and what it costs to store."""
from .delta import is_changed
from .layers import Int8Linear, SparseWeight
from .layers.quantised import packed_bytes, quantised_entries
from .methods.routing import TABLE
from .tuned import find_tuned


class Report(dict):
    """Counts of a tuned model; prints as a table.

    Keys:
        method, trunk (str): types.
        trained, frozen (int): parameters of the trunk and the method; neck and heads are not counted, as in the papers.
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
        console = Console(width=100)
        with console.capture() as captured:
            console.print(table)
        return captured.get().rstrip()


def report(model):
    """Count what a tuned model (or trunk) trains; see `Report` for the keys. ValueError if it is not tuned."""
    prefix, trunk = find_tuned(model)
    tuning = trunk.tuning
    outside = {name for name, _ in model.named_parameters() if not name.startswith(prefix)}
    outside |= {prefix + name for name in tuning.head}
    masked = {module.weight: module.index.numel() for module in trunk.modules() if isinstance(module, SparseWeight)}
    rows, frozen, frozen_bytes = [], 0, 0
    for name, parameter in model.named_parameters():
        size = parameter.numel() * parameter.element_size()
        if parameter.requires_grad:
            stock = name[len(prefix):] in tuning.keys
            part = 'head' if name in outside else 'trunk' if stock else 'method'
            count = masked.get(parameter, parameter.numel())
            rows.append(dict(name=name, shape=tuple(parameter.shape), trained=count, bytes=size, part=part))
        elif name not in outside:
            frozen, frozen_bytes = frozen + parameter.numel(), frozen_bytes + size
    for module in trunk.modules():
        if isinstance(module, Int8Linear):                              # its weight is no parameter
            frozen += module.levels.numel()
            frozen_bytes += sum(value.numel() * value.element_size() for value in (module.levels, module.scale))
    inside = [row for row in rows if row['part'] != 'head']
    bits = quantised_entries(trunk)
    recorded = {f'{name}_statistics' for name in bits}
    delta_bytes = sum(packed_bytes(value.numel(), bits[name]) if name in bits else value.numel() * value.element_size()
                      for name, value in trunk.state_dict().items() if name not in tuning.head | recorded
                      and is_changed(trunk, name) and value.is_floating_point()
                      and not name.startswith(f'{TABLE}.'))
    return Report(
        method=type(tuning.method).__name__, trunk=type(trunk).__name__,
        trained=sum(row['trained'] for row in inside), frozen=frozen,
        trained_bytes=sum(row['bytes'] for row in inside), frozen_bytes=frozen_bytes, delta_bytes=delta_bytes,
        head=sum(row['trained'] for row in rows if row['part'] == 'head'), rows=rows)
