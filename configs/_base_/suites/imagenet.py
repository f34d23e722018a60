# ImageNet-1K from a trunk that has seen ImageNet-21K: what its tasks share. A task file names the model.
#
# Source: the recipe of SSF (https://github.com/dongzelian/SSF), which GPS follows: timm's augmentation (RandAugment,
# random erasing), Mixup, CutMix, label smoothing, AdamW with a weight decay of 0.05, 30 epochs with 5 of warm-up. SSF
# averages the weights (EMA), which this leaves out. The augmentation is written as in mmpretrain's
# imagenet_bs64_swin_224.py.
# Data: data/imagenet/{train,val}.
_base_ = '../schedules/adamw_100e.py'

# ---- what one edits
suite = 'imagenet'
batch_size = 32           # images per GPU
learning_rate = 1e-3      # for 8 GPUs x 32 images; `--auto-scale-lr` adapts it to another number
max_epochs = 30
warmup_epochs = 5

# ---- for tools/sweep.py; there is no split to choose on
sweep = dict(
    score='accuracy/top1', rates=[learning_rate], weight_decays=[0.05],
    data='configs/_base_/tasks/README.md says where it is had')

# ---- the data
augmentation = [
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment', policies='timm_increasing', num_policies=2, total_level=10, magnitude_level=9,
        magnitude_std=0.5, hparams=dict(pad_val=[128, 128, 128], interpolation='bicubic')),
    dict(
        type='RandomErasing', erase_prob=0.25, mode='rand', min_area_ratio=0.02, max_area_ratio=1 / 3,
        fill_color=[128, 128, 128], fill_std=[58, 58, 58])
]
centre = [
    dict(type='ResizeEdge', scale=248, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224)
]
load, pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
train_dataloader = dict(
    batch_size=batch_size, num_workers=5, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='ImageNet', data_root='data/imagenet', split='train', pipeline=[load, *augmentation, pack]))
val_dataloader = dict(
    batch_size=64, num_workers=5, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ImageNet', data_root='data/imagenet', split='val', pipeline=[load, *centre, pack]))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator

# ---- what differs from the schedule
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=learning_rate))
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warmup_epochs),
    dict(_base_.param_scheduler[1], begin=warmup_epochs, end=max_epochs)
]
auto_scale_lr = dict(enable=False, base_batch_size=256)
