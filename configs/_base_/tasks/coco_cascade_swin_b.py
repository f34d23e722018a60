# python tools/train.py configs/_base_/tasks/coco_cascade_swin_b.py --method e3va    (or full, fixed, lora, a file)
#
# The task: instance segmentation on COCO, Cascade Mask R-CNN with Swin-B, 36 epochs. Names no method.
# Expect: not measured by us. Paper (E3VA, Table 2), whole trunk tuned: box AP 51.9, mask AP 45.0.
# Source: heads, losses, crops, schedule and optimizer are those of Swin's published
# cascade_mask_rcnn_swin_base_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco.py
# (https://github.com/SwinTransformer/Swin-Transformer-Object-Detection). That one trains from IN-1K and in mixed
# precision (add `--amp` on a GPU); the E3VA paper trains from IN-22K.
# Data: data/coco/{annotations,train2017,val2017}.
_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py', 'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py', 'mmdet::_base_/default_runtime.py'
]

# ---- what one edits
batch_size = 2            # images per GPU, as in the E3VA paper (section 4.2)
learning_rate = 1e-4      # for 8 GPUs x 2 images; `--auto-scale-lr` adapts it to another number
max_epochs = 36           # the rate drops to a tenth after 27 and 33
num_classes = 80
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_base_patch4_window7_224_22k.pth'

# ---- for tools/sweep.py; there is no split to choose on
sweep = dict(
    score='coco/bbox_mAP', times=100, rates=[learning_rate], weight_decays=[0.05],
    data='the first lines of the file say what belongs there')

# ---- the model: Swin-B, and for each of the three cascade stages a head of 4 convolutions and 1 linear layer
bbox_heads = [
    dict(
        type='ConvFCBBoxHead', num_shared_convs=4, num_shared_fcs=1, in_channels=256, conv_out_channels=256,
        fc_out_channels=1024, roi_feat_size=7, num_classes=num_classes,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=stds),
        reg_class_agnostic=False, reg_decoded_bbox=True, norm_cfg=dict(type='SyncBN', requires_grad=True),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=10.0))
    for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
]
model = dict(
    backbone=dict(
        _delete_=True, type='SwinTransformer', embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32],
        window_size=7, drop_path_rate=0.3, out_indices=(0, 1, 2, 3), convert_weights=True,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[128, 256, 512, 1024]),
    roi_head=dict(bbox_head=bbox_heads, mask_head=dict(num_classes=num_classes)))

# ---- the data: either a random size, or a random size, a crop, and a random size again
sizes = [(short, 1333) for short in range(480, 801, 32)]
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=_base_.backend_args),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='RandomChoiceResize', scales=sizes, keep_ratio=True)],
            [
                dict(type='RandomChoiceResize', scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
                dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
                dict(type='RandomChoiceResize', scales=sizes, keep_ratio=True)
            ]
        ]),
    dict(type='PackDetInputs')
]
train_dataloader = dict(batch_size=batch_size, dataset=dict(pipeline=train_pipeline))

# ---- the schedule
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[27, 33], gamma=0.1)
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=learning_rate, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={name: dict(decay_mult=0.) for name in
                     ('absolute_pos_embed', 'relative_position_bias_table', 'norm')}))
