# python tools/demo/run.py                         the tree crowns: three methods, a table, a picture, a page
# python tools/train.py configs/demo/atss_vit-s.py --method e3va     after `python tools/demo/prepare.py`
#
# ATSS (Zhang et al., CVPR 2020, arXiv:1912.02424) on a ViT-S/14 in DINOv2's layout. What to expect: README.md here.
import os

_base_ = '../_base_/schedules/bench.py'
cache = os.path.expanduser(os.environ.get('E3VA_CACHE', '~/.cache/e3va'))

# ---- what one edits
classes = ('tree', )
data_root = f'{cache}/trees/'
weights = f'{cache}/vit_s_focus.pth'
shown = (224, 224)            # px; the tiles are of this size
epochs = 6
batch = 4
rate = 2e-3                   # AdamW

# ---- the task
sweep = dict(score='coco/bbox_mAP', times=100, rates=[1e-3, 2e-3, 4e-3], weight_decays=[0.01],
             backbone_rate=dict(full=0.1),                              # a whole backbone takes less
             data='python tools/demo/prepare.py makes it')

# ---- the detector
default_scope = 'mmdet'
custom_imports = dict(imports=['e3va.trunks.pyramid'])
channels = 96
norm = dict(type='GN', num_groups=32, requires_grad=True)
model = dict(
    type='ATSS',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True, pad_size_divisor=14),
    backbone=dict(
        type='e3va.TimmTrunk', name='vit_small_patch14_dinov2', out_indices=(5, 8, 11),
        init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=[
        # from three maps at stride 14 to strides 7, 14, 28
        dict(type='e3va.Feature2Pyramid', embed_dim=384, rescales=[2, 1, 0.5]),
        dict(type='ChannelMapper', in_channels=[384, 384, 384], out_channels=channels, kernel_size=1, norm_cfg=norm)],
    bbox_head=dict(
        type='ATSSHead', num_classes=len(classes), in_channels=channels, feat_channels=channels, stacked_convs=2,
        norm_cfg=norm,
        anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], octave_base_scale=4, scales_per_octave=1, strides=[7, 14, 28]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[.0, .0, .0, .0], target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0)),
    train_cfg=dict(
        assigner=dict(type='ATSSAssigner', topk=9, ignore_iof_thr=0.5), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.6), max_per_img=100))

# ---- the data
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
resize = dict(type='Resize', scale=shown, keep_ratio=True)
train_pipeline = [*load, resize, dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
test_pipeline = [*load, resize, dict(
    type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
train_dataloader = dict(
    batch_size=batch, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='CocoDataset', metainfo=dict(classes=classes), ann_file=f'{data_root}train.json',
        data_prefix=dict(img=f'{data_root}images/'), pipeline=train_pipeline,
        filter_cfg=dict(filter_empty_gt=True, min_size=1)))
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset', metainfo=dict(classes=classes), ann_file=f'{data_root}val.json',
        data_prefix=dict(img=f'{data_root}images/'), test_mode=True, pipeline=test_pipeline))
val_evaluator = dict(type='CocoMetric', ann_file=f'{data_root}val.json', metric='bbox')
test_dataloader = val_dataloader
test_evaluator = val_evaluator

# ---- the schedule
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
optim_wrapper = dict(optimizer=dict(lr=rate))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, T_max=epochs, convert_to_iter_based=True)]
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
