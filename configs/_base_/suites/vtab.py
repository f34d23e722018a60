# VTAB-1k: what its nineteen tasks share. A task file names the task and its number of classes.
#
# Source: the recipe of Bi-LoRA (https://github.com/JieShibo/PETL-ViT), which Pear names as its own and whose 64 images,
# AdamW and 224 px DMLoRA states too: images squeezed to 224x224, no augmentation, 100 epochs, 10 of them warm-up.
# Inputs are normalised as by VPT, NOAH and FacT; what else differs between papers is in ../tasks/README.md.
# Data: data/vtab-1k/TASK with its four lists, ../tasks/README.md.
_base_ = ['../models/vit_b.py', '../schedules/adamw_100e.py']

# ---- what one edits; the rest, with the rate, is in ../schedules/adamw_100e.py
suite = 'vtab'
data_root = 'data/vtab-1k'
batch_size = 64           # images, 1 GPU; `--auto-scale-lr` adapts the rate to another number
weight_decay = 1e-4
checkpoint = 'timm://vit_base_patch16_224.orig_in21k'        # Google's ViT-B_16.npz

# ---- for tools/sweep.py: what is tried is chosen on the 200, trained on the 800
sweep = dict(
    score='accuracy/top1', rates=[5e-4, 1e-3, 2e-3], weight_decays=[1e-4],
    choose={'train_dataloader.dataset.split': 'train800', 'val_dataloader.dataset.split': 'val200'},
    data='configs/_base_/tasks/README.md says where it is had')

# ---- the model: one label an image, no smoothing, no mixing
model = dict(
    backbone=dict(drop_path_rate=0.1, init_cfg=dict(checkpoint=checkpoint)),
    head=dict(loss=dict(_delete_=True, type='CrossEntropyLoss', loss_weight=1.0)),
    train_cfg=None)

# ---- the data: 1,000 images to train on, the test set once, at the end. To choose settings, see the 200 instead:
# --cfg-options train_dataloader.dataset.split=train800 val_dataloader.dataset.split=val200
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(224, 224), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs')
]
train_dataloader = dict(
    batch_size=batch_size, num_workers=4, drop_last=True, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='e3va.VTAB', data_root=data_root, split='train800val200', pipeline=pipeline))
val_dataloader = dict(
    batch_size=256, num_workers=4, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='e3va.VTAB', data_root=data_root, split='test', pipeline=pipeline, test_mode=True))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator

# ---- what differs from the schedule
optim_wrapper = dict(optimizer=dict(weight_decay=weight_decay))
param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=1e-3),
    dict(_base_.param_scheduler[1], eta_min=1e-5)
]
default_hooks = dict(logger=dict(interval=15), checkpoint=dict(interval=10, max_keep_ckpts=2))
auto_scale_lr = dict(enable=False, base_batch_size=64)
