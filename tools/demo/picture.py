"""Pictures side by side: a row an image, a column a method."""
import matplotlib
import numpy as np
from PIL import Image

from e3va.files.whole import save_figure

matplotlib.use('Agg')                    # no display needed
from matplotlib import pyplot as plt  # noqa: E402


def grid(path, columns):
    """Write the picture.

    Args:
        path: the png file.
        columns (dict): {title: files of images}, of each image in the same order.
    """
    images = {title: [np.asarray(Image.open(file)) for file in files] for title, files in columns.items()}
    ratios = [image.shape[0] / image.shape[1] for image in next(iter(images.values()))]
    figure, axes = plt.subplots(
        len(ratios), len(images), squeeze=False, height_ratios=ratios, layout='constrained',
        figsize=(3.2 * len(images), 3.2 * sum(ratios) + 0.4))
    for j, (title, column) in enumerate(images.items()):
        axes[0, j].set_title(title, fontsize=10)
        for i, image in enumerate(column):
            axes[i, j].imshow(image)
            axes[i, j].set_axis_off()
    save_figure(figure, path, dpi=110)
    plt.close(figure)
