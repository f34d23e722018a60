# python tools/train.py configs/_base_/tasks/kvasir_sam_vit_b.py --method gps    (or full, fixed, bitfit, ssf, a file)
#
# The task: polyps in colonoscopy images, Kvasir-SEG, SAM with ViT-B, 20 epochs at 1024x1024. Names no method.
# Expect: not measured by us. Paper (GPS, Table 5), on another split: 88.1 mDice and 72.5 mIoU with GPS.
# Source: the authors' code, https://github.com/FightingFighting/GPS, SAM/configs/cod-sam-vit-b.yaml at cb520e4, which
# follows SAM-Adapter: no prompts, BCE + IoU, AdamW 2e-4 (GPS: Adam, ../../methods/gps.yml), one image a step. There GPS
# selects on the test set, and the best epoch is chosen on it; here it selects on `train_dataloader`, and the 120 images
# of val.txt are met once, at the end. To choose settings, divide train.txt: configs/gps/polyp.md.
# Data: data/Kvasir-SEG with images/, masks/, train.txt and val.txt. Needs `pip install segment-anything`.
_base_ = 'mmseg::_base_/default_runtime.py'

# ---- what one edits
suite, task = 'kvasir', 'sam'
data_root = 'data/Kvasir-SEG'
batch_size = 1            # images, 1 GPU; `--auto-scale-lr` adapts the rate to another number
learning_rate = 2e-4
max_epochs = 20
size = (1024, 1024)       # the images are squeezed to it
load_from = 'https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth'       # or a file at hand

# ---- for tools/sweep.py; there is no split to choose on
sweep = dict(
    score='mDice', rates=[learning_rate], weight_decays=[0.05],
    data='configs/gps/polyp.md says where it is had')

# ---- the model: ViT-B, the decoder without prompts, one mask
custom_imports = dict(imports=['e3va.models.sam', 'e3va.datasets.polyp'])
model = dict(
    type='e3va.SAMSegmentor',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
        size=size, pad_val=0, seg_pad_val=255),
    backbone=dict(
        type='mmpretrain.ViTSAM', arch='base', img_size=size[0], patch_size=16, out_channels=256, use_abs_pos=True,
        use_rel_pos=True, window_size=14))

# ---- the data
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='e3va.LoadMask'),
    dict(type='Resize', scale=size, keep_ratio=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=False),
    dict(type='e3va.LoadMask'),                              # behind Resize: judged at the image's own size
    dict(type='PackSegInputs')
]
train_dataloader = dict(
    batch_size=batch_size, num_workers=4, persistent_workers=True, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='e3va.KvasirSEG', data_root=data_root, split='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=4, persistent_workers=True, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='e3va.KvasirSEG', data_root=data_root, split='val', pipeline=test_pipeline, test_mode=True))
test_dataloader = val_dataloader
val_evaluator = dict(type='e3va.PolypMetric')
test_evaluator = val_evaluator

# ---- the schedule
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=learning_rate, weight_decay=0.01))
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=1e-7, by_epoch=True, begin=0, end=max_epochs)]
default_hooks = dict(
    timer=dict(type='IterTimerHook'), logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=True),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'), visualization=dict(type='SegVisualizationHook'))
log_processor = dict(by_epoch=True)
auto_scale_lr = dict(enable=False, base_batch_size=1)
