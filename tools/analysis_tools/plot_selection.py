"""Plot where the weights lie that GPS has selected: how many in each block, by the role of their layer.

    python tools/analysis_tools/plot_selection.py RUN --out selection.png

A checkpoint of a run (epoch_100.pth), a delta of one (delta_epoch_100.safetensors), or the run's folder: its last
checkpoint. Printed are, layer by layer, its selected entries and, where the file has the weight, their share of it and
the inputs that they read: what backward needs of the layer's input.
"""
import re

import numpy as np
from matplotlib.colors import LogNorm

from e3va.command.line import plot_parser, plotting
from e3va.cost.plot import FORMATS, clean, plt
from e3va.files.whole import save_figure
from e3va.train.saved_run import read
from e3va.trunks import FAMILIES, alternatives

BLOCK = r'((?:stages|layers|blocks)\.\d+(?:\.blocks)?(?:\.\d+)?)\.(.+)'
TORCH = dict(attn='q, k, v', out_proj='proj')                           # of torch's attention, in mmseg's ViT
ORDER = ('stem', 'downsample', 'depthwise', 'q, k, v', 'proj', 'fc1', 'fc2')        # as the data flow


def rows(state):
    """A dict for each layer of which entries are selected, in the order of the blocks.

    Keys: layer, block and role (labels), selected, and where the state has the weight, weights and inputs (counts) and
    read (of the inputs).
    """
    layers = [name.removesuffix('.index') for name in state if name.endswith('.index')
              and name.removesuffix('index') + 'values' in state]
    prefix = ''
    while layers and len({name.partition('.')[0] for name in layers}) == 1:        # 'backbone.'
        prefix += layers[0].partition('.')[0] + '.'
        layers = [name.partition('.')[2] for name in layers]
    found = []
    for name in layers:
        block, role = place(name)
        index = state[f'{prefix}{name}.index'].long()
        row = dict(layer=prefix + name, block=block, role=role, selected=index.numel())
        weight = state.get(f'{prefix}{name}.weight', state.get(f'{prefix}{name}.in_proj_weight'))
        if weight is not None:
            inputs = weight[0].numel()
            row.update(weights=weight.numel(), inputs=inputs, read=len((index % inputs).unique()))
        found.append(row)
    return sorted(found, key=sequence)


def place(name):
    """(label of the block, label of the role) of a layer of a trunk."""
    family = next((parts.ROLES for parts in FAMILIES.values()
                   if any(re.fullmatch(at.pattern, name) for role in parts.ROLES.values() for at in alternatives(role))
                   ), {})
    roles = [role for role, found in family.items() for at in alternatives(found) if re.fullmatch(at.pattern, name)]
    if 'downsample' in name:
        return f'down {re.search(r"[0-9]+", name)[0]}', 'downsample'
    inside = re.fullmatch(BLOCK, name)
    if not inside:
        outside = 'stem' if name.startswith('patch_embed') else name.partition('.')[0]
        return outside, outside
    block = '.'.join(re.findall(r'\d+', inside[1]))
    if roles:
        return block, 'q, k, v' if 'q' in roles and 'fc1' not in roles else roles[-1]
    if 'conv_dw' in name or 'depthwise' in name:
        return block, 'depthwise'
    part = re.sub(r'^(attn\.)+', '', inside[2])
    return block, TORCH.get(part, part)


def sequence(row):
    """Sorts as the data flow: the stem, the blocks with what leads from stage to stage, and the rest."""
    numbers = list(map(int, re.findall(r'\d+', row['block'])))
    if not numbers:
        numbers = [-1 if row['block'] == 'stem' else 10 ** 6]
    part = 1 if 'down' not in row['block'] else 2 if row['layer'].endswith('downsample.reduction') and (
        'stages.' in row['layer']) else 0                               # OpenMMLab's Swin ends a stage by it
    return numbers[0], part, numbers[1:], rank(row['role'])


def rank(role):
    return ORDER.index(role) if role in ORDER else len(ORDER)


def plot(found, path):
    """Selected entries of each block and role as a map, and above it the share of each block."""
    blocks = list(dict.fromkeys(row['block'] for row in found))
    roles = sorted(dict.fromkeys(row['role'] for row in found), key=rank)
    counts = np.zeros((len(roles), len(blocks)))
    for row in found:
        counts[roles.index(row['role']), blocks.index(row['block'])] += row['selected']
    figure, (above, axes) = plt.subplots(
        2, 1, figsize=(max(6, 0.36 * len(blocks) + 2.5), 2.6 + 0.32 * len(roles)), layout='constrained', sharex=True,
        height_ratios=[2, len(roles)])
    above.bar(np.arange(len(blocks)) + 0.5, 100 * counts.sum(0) / counts.sum(), color='0.45', width=0.8)
    above.set_ylabel('of all, %')
    above.set_title(f'{int(counts.sum()):,} selected weights', fontsize=11, loc='left')
    clean(above)
    picture = axes.pcolormesh(np.ma.masked_equal(counts, 0), cmap='viridis', edgecolors='w', linewidth=1,
                              norm=LogNorm(1, max(counts.max(), 10)))   # a net's selection lies in a few layers
    axes.set_xticks(np.arange(len(blocks)) + 0.5, blocks, rotation=0 if len(blocks) < 15 else 90)
    axes.set_yticks(np.arange(len(roles)) + 0.5, roles)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel('block')
    figure.colorbar(picture, ax=axes, label='selected weights', pad=0.01)
    save_figure(figure, path, dpi=150)
    plt.close(figure)


def line(row):
    """A row as text, tabs between its columns."""
    columns = [row['block'], row['role'], f'{row["selected"]:,}']
    if 'weights' in row:
        columns += [f'{100 * row["selected"] / row["weights"]:.3f} %', f'{row["read"]} of {row["inputs"]} inputs']
    return '\t'.join(columns)


def main(argv=None):
    args = plot_parser(__doc__, 'GPS', 'selection.png').parse_args(argv)
    with plotting(args, FORMATS):
        found = rows(read(args.run)[0])
        if not found:
            raise ValueError(f'{args.run} holds no selection of GPS: it is of another method, or merged')
        plot(found, args.out)
        print(*map(line, found), sep='\n')
        known = [row for row in found if 'weights' in row]
        total = f'{sum(row["selected"] for row in found):,} selected weights'
        if known:
            total += (f' of {sum(row["weights"] for row in known):,}; inputs read: '
                      f'{100 * sum(row["read"] for row in known) / sum(row["inputs"] for row in known):.1f} %')
        print(total)


if __name__ == '__main__':
    main()
