# Nuclei in microscope images: nucleus or background for each pixel (Data Science Bowl 2018, CC0; a subset).
#
# python tools/sweep.py configs/demo/nuclei.py --methods fixed,lora        the whole protocol of configs/bench
# python tools/train.py configs/demo/nuclei.py --method lora               one run
#
# UPerNet (Xiao et al., ECCV 2018, arXiv:1807.10221) on a ViT-S/14 in DINOv2's layout.
import os

_base_ = '../_base_/schedules/bench.py'
cache = os.path.expanduser(os.environ.get('E3VA_CACHE', '~/.cache/e3va'))

# ---- what one edits
classes = ('background', 'nucleus')
data_root = 'data/nuclei/'
weights = f'{cache}/vit_s_focus.pth'
crop = (112, 112)             # px
epochs = 5
batch = 4

# ---- the task
sweep = dict(score='mIoU', rates=[3e-4, 1e-3, 3e-3], weight_decays=[0.01],
             backbone_rate=dict(full=0.1),                              # a whole backbone takes less
             data='configs/bench/README.md says where it is had')

# ---- the segmenter
default_scope = 'mmseg'
custom_imports = dict(imports=['e3va.trunks.pyramid'])
channels = 64
norm = dict(type='GN', num_groups=16, requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
        size=crop, pad_val=0, seg_pad_val=255, test_cfg=dict(size_divisor=14)),
    backbone=dict(
        type='e3va.TimmTrunk', name='vit_small_patch14_dinov2', out_indices=(5, 8, 11),
        init_cfg=dict(type='Pretrained', checkpoint=weights)),
    # from three maps at stride 14 to strides 7, 14, 28
    neck=dict(type='e3va.Feature2Pyramid', embed_dim=384, rescales=[2, 1, 0.5],
              norm_cfg=dict(type='BN', requires_grad=True)),
    decode_head=dict(
        type='UPerHead', in_channels=[384] * 3, in_index=[0, 1, 2], pool_scales=(1, 2, 3, 6), channels=channels,
        dropout_ratio=0.1, num_classes=len(classes), norm_cfg=norm, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))

# ---- the data: of the 200 training images every fifth is for validation, the 64 others for the test
files = dict(
    type='BaseSegDataset', metainfo=dict(classes=classes, palette=[[0, 0, 0], [255, 255, 255]]), data_root=data_root,
    img_suffix='.jpg', seg_map_suffix='.png')
train_folders = dict(img_path='images/train', seg_map_path='semantic/train')
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=crop), dict(type='RandomFlip', prob=0.5),
    dict(type='RandomFlip', prob=0.5, direction='vertical'), dict(type='PackSegInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(
    batch_size=batch, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(files, data_prefix=train_folders, pipeline=train_pipeline,
                 indices=[i for i in range(200) if i % 5]))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(files, data_prefix=train_folders, pipeline=test_pipeline, indices=list(range(0, 200, 5))))
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(files, data_prefix=dict(img_path='images/val', seg_map_path='semantic/val'), pipeline=test_pipeline))
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

# ---- the schedule
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, T_max=epochs, convert_to_iter_based=True)]
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
