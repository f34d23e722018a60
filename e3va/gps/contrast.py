"""The supervised contrastive loss (Khosla et al., NeurIPS 2020, arXiv 2004.11362) and the features that it compares."""
import torch
from torch.nn import functional as F

from ..tuned import find_tuned

CELLS = 7                                                               # samples along a side of a box


def supcon(features, labels, temperature=0.07):
    """Equation 2 of GPS, as a mean over the anchors that have a positive; for 'all' of several views, stack them.

        L_i = -1 / |P(i)| sum_{p in P(i)} log(exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t))

    with z = f / |f| and P(i) the other samples of i's class. The sum in the paper is a mean in its code.

    Args:
        features (Tensor): f, (N, C).
        labels (Tensor): classes, (N,).
        temperature (float): t.

    Raises:
        ValueError: no class has two samples, so that there is nothing to compare; ask `has_pairs` first.
    """
    if not has_pairs(labels):
        raise ValueError('the supervised contrastive loss needs a class with two samples; give larger batches, or two '
                         'views of each image')
    z = F.normalize(features.float(), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = z @ z.T / temperature
    logs = logits - logits.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    count = positive.sum(1)
    return -((logs * positive).sum(1)[count > 0] / count[count > 0]).mean()


def has_pairs(labels):
    """Whether a class has two samples."""
    return len(labels.unique()) < len(labels)


def labels_of(samples):
    """(classes, where they are) of OpenMMLab's data samples, (N,) and a list for each sample.

    An image has its class and is whole (None), a detector's has a class for each box (x1, y1, x2, y2 in px), a
    segmenter's one for each region: the pixels of a class, as a mask (H, W).

    Raises:
        ValueError: no or several classes for an image.
    """
    classes, places = [], []
    for sample in samples:
        if hasattr(sample, 'gt_instances'):
            boxes = sample.gt_instances.bboxes
            found, where = sample.gt_instances.labels.tolist(), list(getattr(boxes, 'tensor', boxes))
        elif hasattr(sample, 'gt_sem_seg'):
            pixels = sample.gt_sem_seg.data.squeeze(0)
            found = [int(value) for value in pixels.unique() if value != 255]       # 255: to be ignored
            where = [pixels == value for value in found]
        else:
            found, where = sample.gt_label.tolist(), [None]
            if len(found) != 1:
                raise ValueError(f"the supervised contrastive loss needs one class for an image, found {len(found)}; "
                                 "take loss='task'")
        classes += found
        places.append(where)
    return torch.tensor(classes, dtype=torch.long), places


def features_of(model, inputs, places):
    """What is compared, (N, C), of images (B, 3, H, W) and `labels_of`'s places.

    Of a classifier: what its head gets. Of others: for each box or region the mean over the trunk's map, all of its
    maps side by side, each of length one. Neck and heads, new and random, take no part.
    """
    if all(len(where) == 1 and where[0] is None for where in places):
        feature = model.extract_feat(inputs, stage='pre_logits')
        return feature[-1] if isinstance(feature, (tuple, list)) else feature
    return torch.cat([F.normalize(pooled(fmap, places, inputs.shape[-2:]), dim=1)
                      for fmap in find_tuned(model)[1](inputs)], dim=1)


def pooled(fmap, places, size):
    """Means of a map (B, C, h, w) over boxes or regions of images of `size` (H, W), (N, C)."""
    rows = []
    for each, where in zip(fmap.float(), places):
        boxes = [place for place in where if place.dim() == 1]
        if boxes:
            rows.append(over_boxes(each, torch.stack(boxes).to(each), size))
        elif where:
            masks = F.pad(torch.stack(where).to(each), (0, size[1] - where[0].shape[1], 0, size[0] - where[0].shape[0]))
            share = F.adaptive_avg_pool2d(masks[None], each.shape[1:])[0].flatten(1)       # of each cell
            rows.append(share @ each.flatten(1).T / share.sum(1, keepdim=True))
    return torch.cat(rows)


def over_boxes(fmap, boxes, size):
    """Means of a map (C, h, w) over boxes (n, 4), bilinear at CELLS x CELLS points, (n, C)."""
    step = (torch.arange(CELLS).to(fmap) + 0.5) / CELLS
    scale = 2 / torch.tensor([size[1], size[0]]).to(fmap)
    low, span = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    x, y = ((low + step[:, None] * span) * scale - 1).unbind(-1)        # (n, CELLS) each, in [-1, 1]
    grid = torch.stack((x[:, None].expand(-1, CELLS, -1), y[:, :, None].expand(-1, -1, CELLS)), dim=-1)
    found = F.grid_sample(fmap[None], grid.reshape(1, -1, CELLS, 2), align_corners=False)[0]
    return found.reshape(len(fmap), len(boxes), -1).mean(-1).T
