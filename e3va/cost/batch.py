"""Generated images with ground truth, in the form in which each library's loader hands them to the model."""
import math

import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData

from ..command.config import nodes

OBJECTS = 8                 # boxes in an image; COCO has 7.3 on average
REGION = 32                 # px of a square of one class in a map


def default_size(cfg):
    """(H, W) in px that the config trains on: of several the largest, lying, filled up as its preprocessor does.

    Raises:
        ValueError: the config says none.
    """
    preprocessor = cfg.model.get('data_preprocessor') or {}
    size = preprocessor.get('size')
    for node in nodes((cfg.get('train_dataloader') or {}).get('dataset') if size is None else None):
        for key in ('crop_size', 'scale', 'scales'):
            given = node.get(key) if 'type' in node else None
            if isinstance(given, (int, list, tuple)):
                size = max(given, key=math.prod) if isinstance(given, list) and isinstance(given[0], tuple) else given
    if size is None:
        raise ValueError('the config does not say the size of its training images: give --size H W')
    sides = sorted([size, size] if isinstance(size, int) else size)
    step = preprocessor.get('pad_size_divisor', 1)
    return tuple(math.ceil(side / step) * step for side in sides)


def fix_size(model, size):
    """Let a preprocessor that pads or resizes to a size of its own keep to (H, W); in place."""
    preprocessor = model.get('data_preprocessor') or {}
    for node in nodes(preprocessor):
        if node.get('size') is not None:
            node['size'] = tuple(size)
    if isinstance(preprocessor.get('batch_augments'), list):
        preprocessor.batch_augments = [step for step in preprocessor.batch_augments if 'random_size_range' not in step]


def generate(cfg, size, batch, seed=0):
    """A batch as the train loader of a config gives it: `inputs` of uint8 values and `data_samples`.

    Args:
        cfg (Config): of mmdet, mmseg or mmpretrain; its heads say how many classes there are.
        size (tuple): (H, W) of the images in px.
        batch (int): images.
    """
    kinds = dict(mmdet=detection, mmseg=segmentation, mmpretrain=classification)
    scope = cfg.get('default_scope')
    if scope not in kinds:
        raise ValueError(f'there is no generated ground truth for default_scope={scope!r}; a config of '
                         f'{", ".join(kinds)} is needed')
    random = np.random.default_rng(seed)
    found = [node[key] for node in nodes(cfg.model) for key in ('num_classes', 'num_things_classes')
             if isinstance(node.get(key), int) and node[key] > 0]
    samples = [kinds[scope](cfg, random, tuple(size), min(found, default=1)) for _ in range(batch)]
    images = [torch.from_numpy(random.integers(0, 256, (3, *size), dtype=np.uint8)) for _ in range(batch)]
    return dict(inputs=torch.stack(images) if scope == 'mmpretrain' else images, data_samples=samples)


def detection(cfg, random, size, classes):
    """Boxes and elliptic masks, and a map of classes where the pipeline loads one."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks
    h, w = size
    span = np.array([w, h]) * 2. ** random.uniform(-4, -1, (OBJECTS, 2))        # a 16th to a half of the sides
    corner = random.uniform(0, 1, (OBJECTS, 2)) * ([w, h] - span)
    y, x = np.mgrid[:h, :w] + .5
    masks = [np.hypot((x - cx) / (sx / 2), (y - cy) / (sy / 2)) <= 1
             for (cx, cy), (sx, sy) in zip(corner + span / 2, span)]
    boxes = torch.from_numpy(np.hstack([corner, corner + span])).float()
    meta = dict(img_id=0, img_path='', img_shape=size, ori_shape=size, scale_factor=(1., 1.), flip=False,
                flip_direction=None)
    sample = DetDataSample(metainfo=meta)
    sample.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(boxes), labels=torch.from_numpy(random.integers(0, classes, OBJECTS)),
        masks=BitmapMasks(np.stack(masks).astype(np.uint8), h, w))
    sample.ignored_instances = InstanceData(bboxes=HorizontalBoxes(boxes[:0]), labels=torch.zeros(0).long(),
                                            masks=BitmapMasks(np.zeros((0, h, w), np.uint8), h, w))
    if any(node.get('with_seg') or 'LoadPanopticAnnotations' in str(node.get('type'))
           for node in nodes(cfg.get('train_dataloader'))):
        sample.gt_sem_seg = PixelData(sem_seg=regions(random, size, classes))
    return sample


def segmentation(cfg, random, size, classes):
    from mmseg.structures import SegDataSample
    sample = SegDataSample(metainfo=dict(img_path='', img_shape=size, ori_shape=size))
    sample.gt_sem_seg = PixelData(data=regions(random, size, classes))
    return sample


def classification(cfg, random, size, classes):
    from mmpretrain.structures import DataSample
    return DataSample(metainfo=dict(img_shape=size, ori_shape=size)).set_gt_label(int(random.integers(classes)))


def regions(random, size, classes):
    """A map of classes, (1, H, W), in squares."""
    few = random.integers(0, classes, [math.ceil(side / REGION) for side in size])
    return torch.from_numpy(np.kron(few, np.ones((REGION, REGION), int))[None, :size[0], :size[1]].copy())
