"""Generated batches go through the libraries' own preprocessors; sizes are those of the configs."""
import numpy as np
import pytest
import torch
from mmengine.config import Config

from e3va.command.config import load_config
from e3va.cost import batch
from e3va.cost.spec import stock


@pytest.mark.parametrize('name, size', [
    ('mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py', (800, 1344)),                # (1333, 800), filled up to 32
    ('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py', (800, 1344)),        # the largest of a list
    ('mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', (512, 512)),
    ('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', (224, 224)),
    ('mmpretrain::swin_transformer/swin-base_16xb64_in1k-384px.py', (384, 384))])
def test_default_sizes(name, size):
    assert batch.default_size(stock(load_config(name))) == size


def test_a_size_that_the_config_does_not_say():
    with pytest.raises(ValueError, match='give --size H W'):
        batch.default_size(Config(dict(model=dict(type='X'))))


def config(scope, **model):
    return Config(dict(default_scope=scope, model=model, train_dataloader=dict(
        dataset=dict(pipeline=[dict(type='LoadAnnotations', with_seg=True)]))))


def test_detection():
    from mmdet.models.data_preprocessors import DetDataPreprocessor
    cfg = config('mmdet', bbox_head=dict(num_classes=3))
    made = batch.generate(cfg, (60, 90), 2)
    data = DetDataPreprocessor(mean=[0] * 3, std=[1] * 3, pad_size_divisor=32, pad_mask=True, pad_seg=True)(made, True)
    assert data['inputs'].shape == (2, 3, 64, 96) and data['inputs'].std() > 50
    for sample in data['data_samples']:
        boxes, labels = sample.gt_instances.bboxes, sample.gt_instances.labels
        assert type(boxes) is torch.Tensor and boxes.shape == (8, 4) and set(labels.tolist()) <= {0, 1, 2}
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all() and (boxes[:, 2:] <= torch.tensor([90, 60])).all()
        assert sample.gt_instances.masks.masks.shape == (8, 64, 96)
        # an ellipse fills pi / 4 of its box
        area = sample.gt_instances.masks.areas.sum() / (boxes[:, 2:] - boxes[:, :2]).prod(1).sum()
        assert abs(area - np.pi / 4) < 0.1
        assert sample.gt_sem_seg.sem_seg.shape == (1, 64, 96)
        assert len(sample.ignored_instances.bboxes) == 0
    cfg.train_dataloader = None
    assert 'gt_sem_seg' not in batch.generate(cfg, (60, 90), 1)['data_samples'][0]


def test_segmentation():
    from mmseg.models import SegDataPreProcessor
    cfg = config('mmseg', decode_head=dict(num_classes=5), auxiliary_head=[dict(num_classes=5)])
    made = batch.generate(cfg, (50, 70), 3)
    data = SegDataPreProcessor(mean=[0] * 3, std=[1] * 3, size=(64, 80))(made, True)
    assert data['inputs'].shape == (3, 3, 64, 80)
    maps = torch.stack([sample.gt_sem_seg.data for sample in data['data_samples']])
    assert maps.shape == (3, 1, 64, 80) and set(maps[:, :, :50, :70].unique().tolist()) <= set(range(5))


def test_classification():
    from mmpretrain.models import ClsDataPreprocessor
    made = batch.generate(config('mmpretrain', head=dict(num_classes=4)), (32, 48), 5)
    data = ClsDataPreprocessor(num_classes=4, to_onehot=True)(made, True)
    assert data['inputs'].shape == (5, 3, 32, 48)
    assert all(sample.gt_score.shape == (4, ) and sample.gt_score.sum() == 1 for sample in data['data_samples'])


def test_the_same_batch_every_time():
    cfg = config('mmseg', decode_head=dict(num_classes=5))
    assert torch.equal(batch.generate(cfg, (8, 8), 1)['inputs'][0], batch.generate(cfg, (8, 8), 1)['inputs'][0])


def test_other_libraries():
    with pytest.raises(ValueError, match="no generated ground truth for default_scope='mmpose'"):
        batch.generate(config('mmpose'), (8, 8), 1)


def test_preprocessors_keep_to_the_size():
    model = Config(dict(data_preprocessor=dict(size=(512, 512), batch_augments=[
        dict(type='BatchFixedSizePad', size=(1024, 1024)),
        dict(type='BatchSyncRandomResize', random_size_range=(480, 800))])))
    batch.fix_size(model, (64, 96))
    assert model.data_preprocessor.size == (64, 96)
    assert model.data_preprocessor.batch_augments == [dict(type='BatchFixedSizePad', size=(64, 96))]
