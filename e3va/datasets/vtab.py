"""VTAB-1k (Zhai et al., arXiv:1910.04867): nineteen tasks with 1,000 training images each.

The layout is the one that NOAH's script writes (https://github.com/ZhangYuanhan-AI/NOAH, data/vtab-source) and that
public code on adapters reads: a folder for each task with `images/` and the lists `train800.txt`, `val200.txt`,
`train800val200.txt` and `test.txt`. A line is `images/test/000000.jpg 7`: a path in the task's folder, a class from 0.
"""
import os
from statistics import fmean as mean
from typing import NamedTuple

from mmengine.fileio import list_from_file
from mmpretrain.datasets import BaseDataset

from ..registry import DATASETS
from ..surgery import near
from .files import existing

SPLITS = ('train800', 'val200', 'train800val200', 'test')


class Task(NamedTuple):
    """One of the nineteen, by the name of its folder: the group it counts in, its classes, its test images."""
    group: str
    classes: int
    test_images: int


TASKS = dict(
    cifar=Task('natural', 100, 10_000),
    caltech101=Task('natural', 102, 6_084),
    dtd=Task('natural', 47, 1_880),
    oxford_flowers102=Task('natural', 102, 6_149),
    oxford_iiit_pet=Task('natural', 37, 3_669),
    svhn=Task('natural', 10, 26_032),
    sun397=Task('natural', 397, 21_750),
    patch_camelyon=Task('specialized', 2, 32_768),
    eurosat=Task('specialized', 10, 5_400),
    resisc45=Task('specialized', 45, 6_300),
    diabetic_retinopathy=Task('specialized', 5, 42_670),
    clevr_count=Task('structured', 8, 15_000),
    clevr_dist=Task('structured', 6, 15_000),
    dmlab=Task('structured', 6, 22_735),
    kitti=Task('structured', 4, 711),
    dsprites_loc=Task('structured', 16, 73_728),
    dsprites_ori=Task('structured', 16, 73_728),
    smallnorb_azi=Task('structured', 18, 12_150),
    smallnorb_ele=Task('structured', 9, 12_150),
)


@DATASETS.register_module()
class VTAB(BaseDataset):
    """One split of one task, for mmpretrain.

    Args:
        task (str): the task's folder, a key of `TASKS`.
        split (str): 'train800' and 'val200' to choose settings, 'train800val200' and 'test' for the result.
        data_root (str): the folder that holds the tasks' folders.
        **options: those of mmpretrain's BaseDataset.

    Raises:
        ValueError: an unknown task or split, a missing folder or list, a line that is no path and class of the task.
    """

    def __init__(self, task, split='train800val200', data_root='data/vtab-1k', **options):
        if task not in TASKS:
            raise ValueError(f'VTAB-1k has no task {task!r}; {near(task, TASKS)}')
        if split not in SPLITS:
            raise ValueError(f'VTAB-1k has no split {split!r}; there are: {", ".join(SPLITS)}')
        self.task = task
        folder = existing('VTAB-1k', data_root, task)
        existing('VTAB-1k', folder, f'{split}.txt')
        super().__init__(ann_file=f'{split}.txt', data_root=folder, **options)

    def load_data_list(self):
        classes, entries = TASKS[self.task].classes, []
        for number, line in enumerate(list_from_file(self.ann_file), 1):
            path, _, label = line.strip().rpartition(' ')
            if not line.strip():
                continue
            if not path or not label.isdecimal() or int(label) >= classes:
                raise ValueError(f'{self.ann_file}, line {number}: found {line.strip()!r}, where a path and a class '
                                 f'from 0 to {classes - 1} belong')
            entries.append(dict(img_path=os.path.join(self.data_root, path), gt_label=int(label)))
        return entries


def averages(accuracies):
    """The two averages that papers print over the nineteen tasks, which differ by 3 points for full fine-tuning.

    Args:
        accuracies (dict): accuracy of each task of `TASKS`.

    Returns:
        dict: the mean of each group (`natural`, `specialized`, `structured`), `groups`, the mean of these three (NOAH,
        Pear, DMLoRA), and `tasks`, the mean of the nineteen (GPS).

    Raises:
        ValueError: a task is missing, or there is one more.
    """
    if set(accuracies) != set(TASKS):
        missing, other = [name for name in TASKS if name not in accuracies], sorted(set(accuracies) - set(TASKS))
        raise ValueError('averages are over the nineteen tasks of VTAB-1k; '
                         + '; '.join(f'{what}: {", ".join(names)}' for what, names in
                                     (('missing', missing), ('unknown', other)) if names))
    groups = {group: mean(accuracies[name] for name, task in TASKS.items() if task.group == group)
              for group in ('natural', 'specialized', 'structured')}
    return dict(groups, groups=mean(groups.values()), tasks=mean(accuracies.values()))
