"""The map of a pruned trunk: blocks by roles, coloured by the unit that serves each, with the contributions."""
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..files.whole import save_figure

# Hues that stay apart, for the units that serve several positions; what serves its own alone is grey.
COLOURS = [matplotlib.colormaps['tab20'](i) for i in (*range(0, 20, 2), *range(1, 20, 2)) if i not in (14, 15)]
OWN, NONE = '0.9', 'white'


def figure_of(rows):
    """A figure of what `pear.rows` gives.

    A cell is a position, in the colour of the unit that serves it, with the contribution of its own unit; where that
    was pruned the frame is dashed, and below it stands who serves.
    """
    blocks = list(dict.fromkeys(row['block'] for row in rows))
    roles = list(dict.fromkeys(row['role'] for row in rows))
    places = {row['name']: f'{row["block"]} {row["role"]}' for row in rows}
    servers = {row['served_by'] for row in rows if row['pruned']}
    shared = [row['name'] for row in rows if row['name'] in servers]
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(shared)}
    unit = 10 ** np.floor(np.log10(max([row['score'] for row in rows] + [1e-300])))
    figure = Figure(figsize=(1.6 + 0.82 * len(blocks), 1.5 + 0.75 * len(roles)), dpi=110, layout='constrained')
    axes = figure.add_subplot()
    for row in rows:
        x, y, by = blocks.index(row['block']), roles.index(row['role']), row['served_by']
        face = NONE if by is None else colour.get(by, OWN)
        axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=face, edgecolor='0.2',
                                 linewidth=0.8 if row['pruned'] else 2, linestyle='--' if row['pruned'] else '-'))
        ink = 'black' if by is None or sum(matplotlib.colors.to_rgb(face)) > 1.4 else 'white'
        axes.text(x, y - 0.12, f'{row["score"] / unit:.2f}', ha='center', va='center', color=ink, fontsize=10)
        if row['pruned']:
            axes.text(x, y + 0.22, f'by {places[by]}' if by else 'none', ha='center', va='center', color=ink,
                      fontsize=7)
    axes.set_xlim(-0.6, len(blocks) - 0.4)
    axes.set_ylim(len(roles) - 0.4, -0.6)
    axes.set_xticks(range(len(blocks)), blocks)
    axes.set_yticks(range(len(roles)), roles)
    axes.set(xlabel='block', aspect='equal')
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    pruned = sum(row['pruned'] for row in rows)
    axes.set_title(f'{pruned} of {len(rows)} units pruned (dashed); contributions '
                   f'{"per entry " if rows[0]["per_entry"] else ""}in {unit:.0e}', fontsize=10, loc='left')
    return figure


def draw(rows):
    """The figure as an image, (H, W, 3) in uint8, RGB."""
    canvas = FigureCanvasAgg(figure_of(rows))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(rows, path):
    """Write the figure; the format is that of the name."""
    save_figure(figure_of(rows), path, dpi=150)
