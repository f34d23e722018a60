"""Plot the scales that DMLoRA has learned, layer by layer.

    python tools/analysis_tools/plot_scales.py RUN --out scales.png

A checkpoint of a run (epoch_110.pth), a delta of one (delta_epoch_110.safetensors), or the run's folder: its last
checkpoint.
"""
import re

from e3va.command.line import plot_parser, plotting
from e3va.cost.plot import FORMATS, clean, plt
from e3va.files.whole import save_figure
from e3va.train.saved_run import run_of

BLOCK = r'(.*?\d+(?:\.(?:blocks\.)?\d+)?)\.(.*)'                       # and the layer in it


def rows(state, prefix, roles):
    """(block, role, scale) of each adapted matrix, from the first block to the last.

    Args:
        prefix (str): of the trunk's names, e.g. 'backbone.'.
        roles (sequence of str): those of the method; they name the slices of a fused layer.
    """
    found = []
    for name, value in state.items():
        layer = name.removesuffix('.scale')
        if layer == name or f'{layer}.down.0.0' not in state:
            continue                                                    # another scale
        block, part = re.fullmatch(BLOCK, layer.removeprefix(prefix)).groups()
        fused = [role for role in 'qkv' if role in roles] if layer.endswith('qkv') else []
        labels = fused if len(fused) == len(value) else [f'{part}.{i}' if len(value) > 1 else part
                                                         for i in range(len(value))]
        found += [('.'.join(re.findall(r'\d+', block)), label, scale) for label, scale in zip(labels, value.tolist())]
    return sorted(found, key=lambda row: ([int(number) for number in row[0].split('.')], row[1]))


def plot(found, start, path):
    """Scales over blocks, a line a role."""
    blocks = list(dict.fromkeys(block for block, _, _ in found))
    figure, axes = plt.subplots(figsize=(max(5, 0.35 * len(blocks) + 2), 3.6), layout='constrained')
    if start is not None:
        axes.axhline(start, color='0.6', linestyle=':', label=f'start, {start:g}')
    for role in dict.fromkeys(role for _, role, _ in found):
        points = [(blocks.index(block), scale) for block, label, scale in found if label == role]
        axes.plot(*zip(*points), 'o-', label=role)
    axes.set_xticks(range(len(blocks)), blocks, rotation=0 if len(blocks) < 15 else 90)
    axes.set(xlabel='block', ylabel='learned scale s')
    axes.legend(frameon=False)
    clean(axes)
    save_figure(figure, path, dpi=150)
    plt.close(figure)


def main(argv=None):
    args = plot_parser(__doc__, 'DMLoRA', 'scales.png').parse_args(argv)
    with plotting(args, FORMATS):
        state, backbone, prefix, _ = run_of(args.run)
        method = backbone.get('method') or {}
        found = rows(state, prefix, method.get('roles', ('q', 'v')))
        if not found:
            raise ValueError(f'{args.run} holds no scales of DMLoRA: it is of another method, or merged')
        plot(found, method.get('scale', 1.), args.out)
        for block, role, scale in found:
            print(f'{block}\t{role}\t{scale:.4f}')


if __name__ == '__main__':
    main()
