"""Small generated data sets in the folder layouts that stock configs of mmdet, mmseg and mmpretrain read.

They let a config run where its real data set is missing: in tests, and to see memory and time at real size. Each
picture has its own random stream (seed, split, number), so the same options give the same bytes, and a larger data set
starts with the pictures of a smaller one.
"""
import functools
import json
import shutil
from pathlib import Path

from .layouts import LAYOUTS

MARKER = 'synthetic.json'  # holds the options; its presence says that the folder was generated


def make(layout, root, images=8, size=None, classes=5, seed=0):
    """Generate a data set. A second call with the same options finds the first one's work and returns at once.

    Args:
        layout: 'coco', 'voc', 'ade20k', 'imagenet', 'cifar100', 'vtab' (all nineteen tasks), 'fgvc' (all five) or
            'kvasir'.
        root: the folder to make; what the configs call `data_root`, such as `data/coco`, `data/VOCdevkit`,
            `data/ade/ADEChallengeData2016`, `data/imagenet`, `data/cifar100`, `data/vtab-1k`, `data/fgvc`,
            `data/Kvasir-SEG`.
        images: number of images in each split, of each task in VTAB-1k and FGVC.
        size: (height, width) of every image in pixels; by default (240, 320), for 'cifar100' always (32, 32).
        classes: how many of the layout's categories appear, the first ones of its list. Files that list categories
            name all of them, as stock configs expect.
        seed: a number from 0.

    Returns:
        The path of `root`.

    Raises:
        ValueError: an option is out of range, or `root` holds something else, which is never touched.
    """
    if layout not in LAYOUTS:
        raise ValueError(f'unknown layout {layout!r}; there are: {", ".join(LAYOUTS)}')
    write, categories, smallest_classes = LAYOUTS[layout]
    size = size or ((32, 32) if layout == 'cifar100' else (240, 320))
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise ValueError(f'size must be a height and a width; got {size!r}')
    if layout == 'cifar100' and tuple(size) != (32, 32):
        raise ValueError(f'size must be (32, 32), as CIFAR always is; got {size!r}')
    for value in size:
        _check('size', value, 32)
    _check('images', images, 1)
    _check('classes', classes, smallest_classes, categories)
    _check('seed', seed, 0)
    options = dict(layout=layout, images=images, size=list(size), classes=classes, seed=seed)

    root = Path(root).expanduser().resolve()
    if _options_of(root) == options:
        return root
    if root.exists() and not (root.is_dir() and _is_empty(root)):
        raise ValueError(f'{root} is there already and was not generated with these options; '
                         'remove it or name another folder')
    # An interrupted call leaves only this folder behind, and the next one knows it by the marker.
    unfinished = root.with_name(f'.{root.name}.unfinished')
    if unfinished.exists():
        if not (unfinished / MARKER).exists() and not _is_empty(unfinished):
            raise ValueError(f'{unfinished} is in the way and was not made here; remove it or name another folder')
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    (unfinished / MARKER).write_text(json.dumps(options))
    write(unfinished, images, tuple(size), classes, seed)
    if root.exists():
        root.rmdir()
    unfinished.rename(root)
    return root


def _check(name, value, smallest, largest=None):
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < smallest or (largest is not None and value > largest):
        bounds = f'from {smallest}' + ('' if largest is None else f' to {largest}')
        raise ValueError(f'{name} must be whole numbers {bounds}; got {value!r}')


def _is_empty(folder):
    return next(folder.iterdir(), None) is None


def _options_of(folder):
    """The options that `folder` was generated with, None if it was not generated."""
    try:
        return json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return None


make_coco = functools.partial(make, 'coco')
make_voc = functools.partial(make, 'voc')
make_ade20k = functools.partial(make, 'ade20k')
make_imagenet = functools.partial(make, 'imagenet')
make_cifar100 = functools.partial(make, 'cifar100')
make_vtab = functools.partial(make, 'vtab')
make_fgvc = functools.partial(make, 'fgvc')
make_kvasir = functools.partial(make, 'kvasir')
