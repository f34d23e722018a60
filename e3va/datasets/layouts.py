"""Writers of generated pictures in the folder layouts of COCO, VOC, ADE20K, ImageNet, CIFAR-100, VTAB-1k, FGVC and
Kvasir-SEG.

Every writer takes an empty folder `root`, the number of `images` in each split, their `size` (height, width), how many
`classes` of the layout's categories appear, and the `seed`. VTAB-1k and FGVC are folders of tasks: each has its splits,
and no more classes than the real one.
"""
import json
import pickle
from xml.etree import ElementTree

import cv2
import numpy as np

from .shapes import scene

MAX_SHAPES = 6  # in one picture for detection and segmentation


def _scenes(images, size, classes, seed, split):
    """Yield for each image of a split: its number from 1, the picture, the shapes' labels, their outlines."""
    for number in range(1, images + 1):
        rng = np.random.default_rng([seed, split, number])
        labels = rng.integers(classes, size=rng.integers(1, MAX_SHAPES + 1)).tolist()
        yield number, *scene(rng, size, labels), labels


def _single_shapes(images, size, classes, seed, split):
    """Yield for each image of a classification split: its number from 1, the picture, its label."""
    for number in range(1, images + 1):
        label = (number - 1) % classes
        yield number, scene(np.random.default_rng([seed, split, number]), size, [label])[0], label


def _write_image(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())


def _coco(root, images, size, classes, seed):
    from mmdet.datasets import CocoDataset  # the only list of the 80 names; slow to import, so not at the top
    categories = [dict(id=i, name=name) for i, name in enumerate(CocoDataset.METAINFO['classes'], 1)]
    (root / 'annotations').mkdir()
    for split, name in enumerate(('train2017', 'val2017')):
        infos, annotations = [], []
        for number, picture, outlines, labels in _scenes(images, size, classes, seed, split):
            file_name = f'{number:012d}.jpg'
            _write_image(root / name / file_name, picture)
            infos.append(dict(id=number, file_name=file_name, height=size[0], width=size[1]))
            for outline, label in zip(outlines, labels):
                annotations.append(dict(
                    id=len(annotations) + 1, image_id=number, category_id=label + 1, iscrowd=0,
                    bbox=[*outline.min(0).tolist(), *np.ptp(outline, 0).tolist()],  # x, y, width, height
                    area=cv2.contourArea(outline), segmentation=[outline.ravel().tolist()]))
        contents = dict(info={}, licenses=[], images=infos, annotations=annotations, categories=categories)
        (root / 'annotations' / f'instances_{name}.json').write_text(json.dumps(contents))


def _voc(root, images, size, classes, seed):
    from mmdet.datasets import VOCDataset
    names = VOCDataset.METAINFO['classes']
    for split, (year, name) in enumerate((('VOC2007', 'trainval'), ('VOC2007', 'test'), ('VOC2012', 'trainval'))):
        folder, identifiers = root / year, []
        for part in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for number, picture, outlines, labels in _scenes(images, size, classes, seed, split):
            identifiers.append(f'{split}{number:05d}')
            _write_image(folder / f'JPEGImages/{identifiers[-1]}.jpg', picture)
            page = ElementTree.Element('annotation')
            ElementTree.SubElement(page, 'filename').text = f'{identifiers[-1]}.jpg'
            _fill(ElementTree.SubElement(page, 'size'), width=size[1], height=size[0], depth=3)
            for outline, label in zip(outlines, labels):
                entry = ElementTree.SubElement(page, 'object')
                _fill(entry, name=names[label], truncated=0, difficult=0)
                (left, top), (right, bottom) = outline.min(0) + 1, outline.max(0) + 1  # VOC counts pixels from 1
                _fill(ElementTree.SubElement(entry, 'bndbox'), xmin=left, ymin=top, xmax=right, ymax=bottom)
            ElementTree.ElementTree(page).write(folder / f'Annotations/{identifiers[-1]}.xml')
        (folder / f'ImageSets/Main/{name}.txt').write_text('\n'.join(identifiers) + '\n')


def _fill(parent, **values):
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = str(value)


def _ade20k(root, images, size, classes, seed):
    """The background is the first category and the shapes are the others; their rims are 0, 'other', as in ADE20K."""
    for split, (folder, name) in enumerate((('training', 'train'), ('validation', 'val'))):
        for number, picture, outlines, labels in _scenes(images, size, classes - 1, seed, split):
            annotation = np.ones(size, dtype=np.uint8)
            for outline, label in zip(outlines, labels):
                cv2.fillPoly(annotation, [outline], label + 2)
                cv2.polylines(annotation, [outline], isClosed=True, color=0)
            stem = f'ADE_{name}_{number:08d}'
            _write_image(root / 'images' / folder / f'{stem}.jpg', picture)
            _write_image(root / 'annotations' / folder / f'{stem}.png', annotation)


def _imagenet(root, images, size, classes, seed):
    """Both forms that mmpretrain reads: a folder a class, and lists in `meta/` (without them it wants 1000 folders)."""
    (root / 'meta').mkdir()
    for split, name in enumerate(('train', 'val')):
        lines = []
        for label in range(classes):  # a class without image keeps its folder, or the ones behind it would move up
            (root / name / f'n{label:08d}').mkdir(parents=True)
        for number, picture, label in _single_shapes(images, size, classes, seed, split):
            path = f'n{label:08d}/{name}_{number:08d}.jpg'
            _write_image(root / name / path, picture)
            lines.append(f'{path} {label}\n')
        (root / 'meta' / f'{name}.txt').write_text(''.join(lines))


def _cifar100(root, images, size, classes, seed):
    """mmpretrain's CIFAR100 knows the real files by their MD5 sums and refuses all others: `cifar.SyntheticCIFAR100`
    is that class without the sums."""
    from mmpretrain.datasets.categories import CIFAR100_CATEGORIES
    folder = root / 'cifar-100-python'
    folder.mkdir()
    for split, name in enumerate(('train', 'test')):
        _, pictures, labels = zip(*_single_shapes(images, size, classes, seed, split))
        channels_first = np.stack(pictures)[..., ::-1].transpose(0, 3, 1, 2)  # CIFAR is RGB, one image a row
        entries = dict(data=channels_first.reshape(images, -1).copy(), fine_labels=list(labels))
        (folder / name).write_bytes(pickle.dumps(entries, protocol=4))
    (folder / 'meta').write_bytes(pickle.dumps(dict(fine_label_names=list(CIFAR100_CATEGORIES)), protocol=4))


def _vtab(root, images, size, classes, seed):
    from .vtab import TASKS  # with mmpretrain, slow to import
    for name, task in TASKS.items():
        lists = {}
        for split, part in enumerate(('train800', 'val200', 'test')):
            lists[part] = []
            for number, picture, label in _single_shapes(images, size, min(classes, task.classes), seed, split):
                path = f'images/{part}/{number - 1:06d}.jpg'
                _write_image(root / name / path, picture)
                lists[part].append(f'{path} {label}\n')
        lists['train800val200'] = lists['train800'] + lists['val200']
        for part, lines in lists.items():
            (root / name / f'{part}.txt').write_text(''.join(lines))


def _fgvc(root, images, size, classes, seed):
    """Class ids are every third number, as those of NABirds leave numbers out."""
    from .fgvc import TASKS
    for name, task in TASKS.items():
        for split, part in enumerate(('train', 'val', 'test')):
            ids = {}
            for number, picture, label in _single_shapes(images, size, min(classes, task.classes), seed, split):
                path = f'{part}/{number:05d}.jpg'
                _write_image(root / task.folder / task.images / path, picture)
                ids[path] = 3 * label + 1
            (root / task.folder / f'{part}.json').write_text(json.dumps(ids))


def _kvasir(root, images, size, classes, seed):
    """Shapes of the first category are the polyps, the others are there to be told from them."""
    for split, part in enumerate(('train', 'val')):
        names = []
        for number, picture, outlines, labels in _scenes(images, size, classes, seed, split):
            mask = np.zeros((*size, 3), dtype=np.uint8)
            cv2.fillPoly(mask, [outline for outline, label in zip(outlines, labels) if label == 0], (255, 255, 255))
            names.append(f'{part}{number:05d}')
            _write_image(root / f'images/{names[-1]}.jpg', picture)
            _write_image(root / f'masks/{names[-1]}.jpg', mask)
        (root / f'{part}.txt').write_text('\n'.join(names) + '\n')


# Layout: its writer, the number of its categories, the fewest that make a task.
LAYOUTS = dict(
    coco=(_coco, 80, 1), voc=(_voc, 20, 1), ade20k=(_ade20k, 150, 2), imagenet=(_imagenet, 1000, 1),
    cifar100=(_cifar100, 100, 1), vtab=(_vtab, 397, 1), fgvc=(_fgvc, 555, 1), kvasir=(_kvasir, 5, 1))
