"""Kvasir-SEG (Jha et al., MMM 2020, arXiv 1911.07069): colonoscopy images with masks of polyps, for mmsegmentation.

The layout is that of its archive, `images/NAME.jpg` and `masks/NAME.jpg`, and beside them lists of names, one a line:
`train.txt` (880) and `val.txt` (120) of the official split (DebeshJha/2020-MediaEval-Medico-polyp-segmentation), or
seeded ones of tools/dataset_converters/split_images.py.
"""
import os

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.evaluator import BaseMetric
from mmseg.datasets import BaseSegDataset

from ..registry import DATASETS, METRICS, TRANSFORMS
from .files import existing

IGNORED = 255


@DATASETS.register_module()
class KvasirSEG(BaseSegDataset):
    """The images of one list.

    Args:
        split (str): name of the list, 'train' for `train.txt`.
        data_root (str): the folder that holds `images`, `masks` and the lists.
        img_suffix, seg_map_suffix (str): other sets of the field have '.png'.
        **options: those of mmseg's BaseSegDataset.

    Raises:
        ValueError: a missing folder, list, image or mask, or an empty list.
    """

    METAINFO = dict(classes=('background', 'polyp'), palette=[[0, 0, 0], [255, 255, 255]])

    def __init__(self, split='train', data_root='data/Kvasir-SEG', img_suffix='.jpg', seg_map_suffix='.jpg', **options):
        existing('Kvasir-SEG', data_root, f'{split}.txt')
        super().__init__(ann_file=f'{split}.txt', data_root=os.path.expanduser(data_root), img_suffix=img_suffix,
                         seg_map_suffix=seg_map_suffix, data_prefix=dict(img_path='images', seg_map_path='masks'),
                         **options)

    def load_data_list(self):
        with open(self.ann_file) as lines:
            names = [os.path.splitext(line.strip())[0] for line in lines if line.strip()]
        if not names:
            raise ValueError(f'{self.ann_file} is empty: it lists the names of images, one a line')
        return [dict(img_path=existing('Kvasir-SEG', self.data_prefix['img_path'], name + self.img_suffix),
                     seg_map_path=existing('Kvasir-SEG', self.data_prefix['seg_map_path'], name + self.seg_map_suffix),
                     label_map=None, reduce_zero_label=False, seg_fields=[]) for name in names]


@TRANSFORMS.register_module()
class LoadMask(BaseTransform):
    """The mask of an image as a map of 0 and 1: what is brighter than 127, as the masks are JPEG files.

    In the place of mmseg's LoadAnnotations: it takes `seg_map_path` and adds `gt_seg_map`, (H, W).
    """

    def transform(self, results):
        path = results['seg_map_path']
        mask = mmcv.imfrombytes(fileio.get(path), flag='grayscale')
        if mask.shape != results['ori_shape']:
            raise ValueError(f'the mask {path} has {mask.shape[0]}x{mask.shape[1]} px, and its image has '
                             f'{"x".join(map(str, results["ori_shape"]))}: they do not belong together')
        results['gt_seg_map'] = (mask > 127).astype(np.uint8)
        results['seg_fields'].append('gt_seg_map')
        return results


@METRICS.register_module()
class PolypMetric(BaseMetric):
    """mDice and mIoU of the polyps, in %: the mean over images, as the field has it, whatever their size.

        Dice = 2 |P and T| / (|P| + |T|),  IoU = |P and T| / |P or T|

    with the pixels P that are predicted and T that are true; 1 where both are empty. mmseg's IoUMetric sums over all
    pixels of all images, and over the background too.
    """

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            found, truth = (sample[name]['data'].squeeze(0) for name in ('pred_sem_seg', 'gt_sem_seg'))
            counts = truth != IGNORED
            found, truth = (found == 1) & counts.to(found.device), ((truth == 1) & counts).to(found.device)
            both, sizes = int((found & truth).sum()), int(found.sum()) + int(truth.sum())
            self.results.append((2 * both / sizes, both / (sizes - both)) if sizes else (1., 1.))

    def compute_metrics(self, results):
        dice, iou = np.mean(results, axis=0)
        return dict(mDice=100 * float(dice), mIoU=100 * float(iou))
