"""FGVC, the five fine-grained tasks of VPT (Jia et al., arXiv:2203.12119), with VPT's splits or the official ones.

VPT published `train.json`, `val.json` and `test.json`, {image: class}, for each of the five
(https://github.com/KMnP/vpt): they hold the official training and test images and set a tenth of the former aside (of
the flowers the official half) to choose settings by. `FGVC` reads them. Of the official files mmpretrain reads those of
three (`CUB`, `Flowers102`, `StanfordCars`); here are the other two.
"""
import json
import os
from itertools import chain
from typing import NamedTuple

import mat4py
from mmpretrain.datasets import CUB, BaseDataset

from ..registry import DATASETS
from ..surgery import near
from .files import existing

SPLITS = ('train', 'val', 'train+val', 'test')


class Task(NamedTuple):
    """One of the five: its folder, the folder of images in it, its classes, its images in VPT's three splits."""
    folder: str
    images: str
    classes: int
    train_images: int
    val_images: int
    test_images: int


TASKS = dict(
    cub=Task('CUB_200_2011', 'images', 200, 5_394, 600, 5_794),
    nabirds=Task('nabirds', 'images', 555, 21_536, 2_393, 24_633),
    flowers=Task('oxfordflower', '', 102, 1_020, 1_020, 6_149),
    dogs=Task('stanforddogs', 'Images', 120, 10_800, 1_200, 8_580),
    cars=Task('stanfordcars', '', 196, 7_329, 815, 8_041),
)


@DATASETS.register_module()
class FGVC(BaseDataset):
    """One split of one task, for mmpretrain.

    A class is the rank of its id among the ids of all three files (NABirds skips most numbers).

    Args:
        task (str): a key of `TASKS`.
        split (str): 'train' and 'val' to choose settings, 'train+val' and 'test' for the result.
        data_root (str): the folder that holds the tasks' folders, which are named in `TASKS`.
        **options: those of mmpretrain's BaseDataset.

    Raises:
        ValueError: an unknown task or split, a missing folder or file, a file of another form, too many classes.
    """

    def __init__(self, task, split='train+val', data_root='data/fgvc', **options):
        if task not in TASKS:
            raise ValueError(f'FGVC has no task {task!r}; {near(task, TASKS)}')
        if split not in SPLITS:
            raise ValueError(f'FGVC has no split {split!r}; there are: {", ".join(SPLITS)}')
        self.task, self.split = task, split
        folder = existing('FGVC', data_root, TASKS[task].folder)
        self.files = {name: existing('FGVC', folder, f'{name}.json') for name in ('train', 'val', 'test')}
        super().__init__(ann_file='', data_root=folder, data_prefix=TASKS[task].images, **options)

    def load_data_list(self):
        lists = {name: read(file) for name, file in self.files.items()}
        ids = sorted(set(chain.from_iterable(content.values() for content in lists.values())))
        if len(ids) > TASKS[self.task].classes:
            raise ValueError(f'{self.data_root}: {self.task} has {TASKS[self.task].classes} classes, and train.json, '
                             f'val.json and test.json name {len(ids)}; are they those of another task?')
        classes = {given: rank for rank, given in enumerate(ids)}
        return [dict(img_path=os.path.join(self.img_prefix, image), gt_label=classes[given])
                for name in self.split.split('+') for image, given in lists[name].items()]


def read(file):
    """{image: class id} of one file."""
    try:
        with open(file) as stream:
            content = json.load(stream)
        return {str(image): int(given) for image, given in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{file} is not of the form {{"image": class}}: {error}') from error


@DATASETS.register_module()
class NABirds(CUB):
    """NABirds by its official files: those of CUB, with names for numbers of images, and with classes not in use.

    Args:
        data_root (str): the folder with `images/`, `images.txt`, `image_class_labels.txt`, `train_test_split.txt`.
        split (str): 'train' (23,929 images) or 'test' (24,633).
        **options: those of mmpretrain's BaseDataset.
    """

    METAINFO = {}

    def _load_data_from_txt(self, filepath):
        with open(filepath) as lines:
            return dict(line.split() for line in lines if line.strip())

    def load_data_list(self):
        ids = sorted({int(given) for given in self._load_data_from_txt(self.image_class_labels_file).values()})
        classes = {given - 1: rank for rank, given in enumerate(ids)}         # CUB has taken 1 off
        return [dict(entry, gt_label=classes[entry['gt_label']]) for entry in super().load_data_list()]


@DATASETS.register_module()
class StanfordDogs(BaseDataset):
    """Stanford Dogs by its official files.

    Args:
        data_root (str): the folder with `Images/`, `train_list.mat` and `test_list.mat`.
        split (str): 'train' (12,000 images) or 'test' (8,580).
        **options: those of mmpretrain's BaseDataset.
    """

    def __init__(self, data_root, split='train', **options):
        if split not in ('train', 'test'):
            raise ValueError(f'Stanford Dogs has no split {split!r}; there are: train, test')
        existing('Stanford Dogs', data_root, f'{split}_list.mat')
        super().__init__(ann_file=f'{split}_list.mat', data_root=data_root, data_prefix='Images', **options)

    def load_data_list(self):
        content = mat4py.loadmat(self.ann_file)
        return [dict(img_path=os.path.join(self.img_prefix, image), gt_label=int(given) - 1)
                for image, given in zip(flat(content['file_list']), flat(content['labels']))]


def flat(values):
    """MATLAB's columns as one list: a column comes as a list of rows."""
    return [item for value in values for item in (flat(value) if isinstance(value, list) else [value])]
