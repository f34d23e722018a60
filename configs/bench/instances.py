# Nuclei one by one: boxes and masks in microscope images (Data Science Bowl 2018, CC0; a subset), in COCO's format.
#
# python tools/sweep.py configs/bench/instances.py --methods fixed,lora    the whole protocol, see README.md here
# python tools/train.py configs/bench/instances.py --method lora           one run
#
# Cascade Mask R-CNN (Cai and Vasconcelos, TPAMI 2019, arXiv:1906.09756), its heads narrow, on a ViT-S/14 in DINOv2's
# layout.
import os

_base_ = ['mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py', '../_base_/schedules/bench.py']
cache = os.path.expanduser(os.environ.get('E3VA_CACHE', '~/.cache/e3va'))

# ---- what one edits
classes = ('nucleus', )
data_root = 'data/nuclei/'
weights = f'{cache}/vit_s_focus.pth'
crop = (112, 112)             # px
epochs = 6
batch = 4

# ---- the task
sweep = dict(score='coco/segm_mAP', times=100, rates=[3e-4, 1e-3, 3e-3], weight_decays=[0.01],
             rates_of=dict(partial=[1e-3, 3e-3, 1e-2], gps=[3e-4, 1e-3, 3e-3, 1e-2]),      # where these end too early
             backbone_rate=dict(full=0.1),                              # a whole backbone takes less
             data='configs/bench/README.md says where it is had')

# ---- the segmenter
default_scope = 'mmdet'
custom_imports = dict(imports=['e3va.trunks.pyramid'])
channels, strides = 64, [7, 14, 28]
bbox_heads = [
    dict(
        type='Shared2FCBBoxHead', in_channels=channels, fc_out_channels=128, roi_feat_size=7,
        num_classes=len(classes), reg_class_agnostic=True,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=stds),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0))
    for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])]
regions = [                                             # 16 of the 512 that are drawn from COCO's images
    dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=overlap, neg_iou_thr=overlap, min_pos_iou=overlap,
                      match_low_quality=False, ignore_iof_thr=-1),
        sampler=dict(type='RandomSampler', num=16, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
        mask_size=28, pos_weight=-1, debug=False)
    for overlap in (0.5, 0.6, 0.7)]
model = dict(
    data_preprocessor=dict(pad_size_divisor=14),
    backbone=dict(
        _delete_=True, type='e3va.TimmTrunk', name='vit_small_patch14_dinov2', out_indices=(5, 8, 11),
        init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=[
        # from three maps at stride 14 to strides 7, 14, 28
        dict(type='e3va.Feature2Pyramid', embed_dim=384, rescales=[2, 1, 0.5]),
        dict(type='FPN', in_channels=[384] * 3, out_channels=channels, num_outs=3)],
    rpn_head=dict(
        in_channels=channels, feat_channels=channels,
        anchor_generator=dict(type='AnchorGenerator', scales=[2], ratios=[0.5, 1.0, 2.0], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, featmap_strides=strides, finest_scale=14),
        bbox_head=bbox_heads,
        mask_roi_extractor=dict(out_channels=channels, featmap_strides=strides, finest_scale=14),
        mask_head=dict(num_convs=1, in_channels=channels, conv_out_channels=channels, num_classes=len(classes))),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=regions),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100)))

# ---- the data: of the 200 training images every fifth is for validation, the 64 others for the test
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
files = dict(type='CocoDataset', metainfo=dict(classes=classes), data_root=data_root)
train_files = dict(ann_file='annotations/instances_train.json', data_prefix=dict(img='images/train/'))
test_pipeline = [*load, dict(type='Resize', scale_factor=1.), dict(type='PackDetInputs', meta_keys=(
    'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'))]
train_dataloader = dict(
    batch_size=batch, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        files, **train_files, filter_cfg=dict(filter_empty_gt=True, min_size=1),
        indices=[i for i in range(200) if i % 5],
        pipeline=[*load, dict(type='RandomCrop', crop_size=crop), dict(type='RandomFlip', prob=0.5),
                  dict(type='PackDetInputs')]))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(files, **train_files, test_mode=True, indices=list(range(0, 200, 5)), pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(files, ann_file='annotations/instances_val.json', data_prefix=dict(img='images/val/'), test_mode=True,
                 pipeline=test_pipeline))
val_evaluator = dict(type='CocoMetric', metric=['bbox', 'segm'])
test_evaluator = val_evaluator

# ---- the schedule
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, T_max=epochs, convert_to_iter_based=True)]
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
