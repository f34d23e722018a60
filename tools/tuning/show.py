"""Predictions to look at: pictures by the libraries' own visualizers, and how good each image's are."""
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import VISUALIZERS
from mmengine.visualization import Visualizer
from PIL import Image

SURE = 0.3                               # a box counts from this score on


def predict(model, dataset, i):
    """The data sample of one image, on the CPU, its truth in it."""
    data = dataset[i]
    collate = pseudo_collate
    with torch.no_grad():
        sample = model.test_step(collate([data]))[0].cpu()
    for key, value in data['data_samples'].items():
        if key.startswith('gt_') and key not in sample:
            sample.set_field(value, key)
    return sample


def image_of(sample):
    """(H, W, 3), RGB, as the model saw it."""
    return mmcv.imread(sample.img_path, channel_order='rgb')


def paint(visualizer, sample, file, classes, sure=SURE):
    """One picture: what was predicted (boxes from the score `sure` on), and the truth where the library draws it."""
    image = image_of(sample)
    if hasattr(visualizer, 'visualize_cls'):
        visualizer.visualize_cls(image, sample, classes=classes, out_file=str(file))
    else:
        options = dict(pred_score_thr=sure) if hasattr(sample, 'pred_instances') else dict(with_labels=False)
        visualizer.add_datasample('image', image, sample, draw_gt=hasattr(sample, 'gt_sem_seg'), out_file=str(file),
                                  **options)


def draw_some(runner, count, folder, truth_folder):
    """Paint `count` images of the validation set, spread over those with an object: predictions, and the truth.

    Of boxes as many of the most certain ones as the truth has: methods differ in how certain they are.
    """
    dataset, model = runner.val_dataloader.dataset, runner.model
    model.eval()
    # a segmenter's and a classifier's pictures have the truth in them
    boxes = truth_of(dataset, 0) is not None
    full = [i for i in range(len(dataset)) if not boxes or truth_of(dataset, i)] or list(range(len(dataset)))
    chosen = sorted({full[k * (len(full) - 1) // max(count - 1, 1)] for k in range(count)})
    for each in (folder, truth_folder) if boxes else (folder, ):
        each.mkdir(parents=True, exist_ok=True)
    classes, visualizer = dataset.metainfo['classes'], runner.visualizer
    for i in chosen:
        sample = predict(model, dataset, i)
        if type(visualizer) is Visualizer:                              # the config names none
            visualizer = library_visualizer(sample, dataset.metainfo)
        name = f'{Path(sample.img_path).stem}.jpg'
        if boxes:
            truth = truth_of(dataset, i)
            best = sample.pred_instances.scores.argsort(descending=True)[:len(truth)]
            sample.pred_instances = sample.pred_instances[best]
            paint_truth(visualizer, sample, truth, truth_folder / name)
        paint(visualizer, sample, folder / name, classes, sure=0)


def library_visualizer(sample, metainfo):
    """The visualizer of the library that has made a data sample."""
    kind = ('mmdet.DetLocalVisualizer' if hasattr(sample, 'pred_instances') else
            'mmseg.SegLocalVisualizer' if hasattr(sample, 'pred_sem_seg') else 'mmpretrain.UniversalVisualizer')
    visualizer = VISUALIZERS.build(dict(type=kind, name='pictures'))
    visualizer.dataset_meta = metainfo
    return visualizer


def paint_truth(visualizer, sample, truth, file):
    """The boxes of a detection set, and the outlines where it has them, in px of the file."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import PolygonMasks
    from mmengine.structures import InstanceData
    image = image_of(sample)
    given = InstanceData(bboxes=torch.tensor([item['bbox'] for item in truth], dtype=torch.float32).reshape(-1, 4),
                         labels=torch.tensor([item['bbox_label'] for item in truth], dtype=torch.int64))
    if truth and all(isinstance(item.get('mask'), list) for item in truth):
        given.masks = PolygonMasks([[np.asarray(part) for part in item['mask']] for item in truth], *image.shape[:2])
    visualizer.add_datasample('truth', image, DetDataSample(gt_instances=given), draw_pred=False, out_file=str(file))


def paint_beside(visualizer, sample, truth, file, classes):
    """The truth at the left, what was predicted at the right."""
    paint(visualizer, sample, file, classes)
    if truth is not None:                                               # the other libraries' pictures have it in them
        left = file.with_stem(f'{file.stem}_truth')
        paint_truth(visualizer, sample, truth, left)
        both = np.hstack([np.asarray(Image.open(each)) for each in (left, file)])
        Image.fromarray(both).save(file)
        left.unlink()


def good(sample, truth):
    """0 to 1: F1 of the boxes at an overlap of 0.5, mean IoU of an image's classes, or the true class's probability.

    Args:
        truth: of `truth_of`.
    """
    if hasattr(sample, 'pred_instances'):
        return f1(sample.pred_instances, truth)
    if hasattr(sample, 'pred_sem_seg'):
        want, got = sample.gt_sem_seg.data.numpy(), sample.pred_sem_seg.data.numpy()
        seen = want != 255
        values = [(both & seen).sum() / ((either & seen).sum() or 1) for label in np.unique(want[seen])
                  for both, either in [((want == label) & (got == label), (want == label) | (got == label))]]
        return float(np.mean(values)) if values else 1.
    return float(sample.pred_score[int(sample.gt_label)])


def f1(found, truth):
    from mmdet.structures.bbox import bbox_overlaps
    found = found[found.scores >= SURE]
    found = found[found.scores.argsort(descending=True)]
    if not len(truth) or not len(found):
        return float(not len(truth) and not len(found))
    overlaps = bbox_overlaps(found.bboxes, torch.tensor([item['bbox'] for item in truth], dtype=torch.float32))
    labels = torch.tensor([item['bbox_label'] for item in truth])
    overlaps[found.labels[:, None] != labels[None]] = 0
    hits, taken = 0, set()
    for row in overlaps:
        best = max((j for j in range(len(truth)) if j not in taken), key=lambda j: row[j], default=None)
        if best is not None and row[best] >= 0.5:
            taken.add(best)
            hits += 1
    return 2 * hits / (len(found) + len(truth))


def truth_of(dataset, i):
    """A detection set's `instances` of an image, without those to be ignored; None of another set."""
    instances = dataset.get_data_info(i).get('instances')
    return instances and [item for item in instances if not item.get('ignore_flag')]


class Peek(Hook):
    """After each validation: a few images with what the model says of them so far, for who watches."""

    priority = 'VERY_LOW'

    def __init__(self, folder, classes, count=3):
        self.folder, self.classes, self.count = folder, classes, count

    def after_val_epoch(self, runner, metrics=None):
        dataset = runner.val_dataloader.dataset
        runner.model.eval()
        for k in range(min(self.count, len(dataset))):
            i = k * (len(dataset) - 1) // max(self.count - 1, 1)
            paint(runner.visualizer, predict(runner.model, dataset, i), self.folder / f'now_{k}.jpg', self.classes)
