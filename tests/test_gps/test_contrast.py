"""The supervised contrastive loss by its formula, and what it compares in dense tasks."""
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from e3va.gps.contrast import features_of, has_pairs, labels_of, pooled, supcon


def test_formula():
    """Equation 2, summand by summand; an anchor whose class has no other sample is left out."""
    torch.manual_seed(0)
    features, labels, t = torch.randn(6, 5), [0, 1, 0, 2, 1, 0], 0.1
    z = [row / row.norm() for row in features]
    anchors = []
    for i in range(6):
        positives = [p for p in range(6) if p != i and labels[p] == labels[i]]
        whole = sum(math.exp(z[i] @ z[a] / t) for a in range(6) if a != i)
        if positives:
            anchors.append(-sum(math.log(math.exp(z[i] @ z[p] / t) / whole) for p in positives) / len(positives))
    assert len(anchors) == 5
    assert float(supcon(features, torch.tensor(labels), t)) == pytest.approx(sum(anchors) / 5, rel=1e-5)


def test_undefined():
    assert has_pairs(torch.tensor([3, 1, 3])) and not has_pairs(torch.tensor([3, 1])) and not has_pairs(torch.ones(0))
    with pytest.raises(ValueError, match='two samples.*two views'):
        supcon(torch.randn(2, 4), torch.tensor([0, 1]))


def test_means_over_boxes():
    """A map that is its own coordinate: the mean over a box is the box's centre, at any size of the map."""
    y, x = torch.meshgrid(torch.arange(8.) + .5, torch.arange(16.) + .5, indexing='ij')
    fmap = torch.stack((x, y)).expand(2, -1, -1, -1) * 4                        # 16 x 8 cells of 4 px
    boxes = [[torch.tensor([8., 4., 24., 28.]), torch.tensor([10., 10., 18., 20.])], [torch.tensor([3., 3., 61., 29.])]]
    torch.testing.assert_close(pooled(fmap, boxes, (32, 64)), torch.tensor([[16., 16.], [14., 15.], [32., 16.]]))


def test_means_over_regions():
    """A region that fills whole cells: their mean."""
    fmap = torch.arange(8.).view(1, 1, 2, 4)
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[:4, :8] = True                                                 # the first two cells of 4 x 4 px
    torch.testing.assert_close(pooled(fmap, [[mask, ~mask]], (8, 16)), torch.tensor([[0.5], [27 / 6]]))


class Trunk(nn.Module):
    """Two maps, of strides 4 and 8."""

    tuning = None

    def forward(self, image):
        return F.avg_pool2d(image, 4), F.avg_pool2d(image, 8).repeat(1, 2, 1, 1)


def test_features_of_dense_tasks():
    """A row for each box or region: every map's mean, of length one, side by side; ignored pixels are none."""
    model, images = nn.ModuleDict(dict(backbone=Trunk())), torch.rand(2, 3, 32, 32)
    boxes = [torch.tensor([[0., 0., 16., 16.], [8., 8., 30., 30.]]), torch.zeros(0, 4)]
    samples = [SimpleNamespace(gt_instances=SimpleNamespace(bboxes=box, labels=torch.arange(len(box)) + 2))
               for box in boxes]
    labels, places = labels_of(samples)
    assert labels.tolist() == [2, 3]
    features = features_of(model, images, places)
    assert features.shape == (2, 9)
    torch.testing.assert_close(features[:, :3].norm(dim=1), torch.ones(2))

    maps = torch.zeros(2, 1, 30, 32, dtype=torch.long)                  # 30: the batch was padded
    maps[0, :, :8], maps[1, :, 16:] = 1, 255
    samples = [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=each)) for each in maps]
    labels, places = labels_of(samples)
    assert labels.tolist() == [0, 1, 0]
    whole = F.normalize(images[1, :, :16].flatten(1).mean(1), dim=0)
    torch.testing.assert_close(features_of(model, images, places)[2, :3], whole)


def test_several_classes_of_an_image():
    sample = SimpleNamespace(gt_label=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="found 2; take loss='task'"):
        labels_of([sample])
