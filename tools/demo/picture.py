"""Predictions beside the truth: a row an image, a column a method."""
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageOps

matplotlib.use('Agg')                    # no display needed
from matplotlib import pyplot as plt  # noqa: E402

COLOURS = plt.get_cmap('tab10').colors


def draw(path, shown, results, classes):
    """Write the picture.

    Args:
        path: the png file.
        shown (list of dict): image and true boxes, of `experiment.truth`.
        results (dict): {method: result of `experiment.run`} of the methods that are done; all show the same images.
        classes (sequence of str): names by label.
    """
    columns = [('truth', [item['true'] for item in shown])]
    for method, result in results.items():
        scores = ', '.join(f'{split} {values["AP"]:.1f}' for split, values in result['scores'].items())
        columns.append((f'{method} (AP {scores})', [item['predicted'] for item in result['predictions']]))
    images = [read(item['image']) for item in shown]
    ratios = [image.shape[0] / image.shape[1] for image in images]
    figure, axes = plt.subplots(
        len(shown), len(columns), squeeze=False, height_ratios=ratios, layout='constrained',
        figsize=(3.2 * len(columns), 3.2 * sum(ratios) + 0.7))
    for j, (title, boxes) in enumerate(columns):
        axes[0, j].set_title(title, fontsize=10)
        for i, image in enumerate(images):
            axes[i, j].imshow(image)
            axes[i, j].set_axis_off()
            for label, left, top, right, bottom in boxes[i]:
                axes[i, j].add_patch(plt.Rectangle(
                    (left, top), right - left, bottom - top, fill=False, linewidth=1.3,
                    edgecolor=COLOURS[label % len(COLOURS)]))
    handles = [plt.Line2D([], [], color=COLOURS[i % len(COLOURS)], label=name) for i, name in enumerate(classes[:10])]
    said = 'of each method: as many of its most certain boxes as the truth has' if results else 'what is to be found'
    figure.legend(handles=handles, loc='outside lower center', ncols=len(handles), fontsize=9, frameon=False,
                  title=said, title_fontsize=9)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def read(path):
    """An image as the detector saw it: mmcv turns a photo the way its EXIF says, PIL does not by itself."""
    return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert('RGB'))
