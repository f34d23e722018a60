# FGVC: what its five tasks share. A task file names the task, its number of classes and the model.
#
# Source: the recipe of SSF, which GPS takes over (https://github.com/dongzelian/SSF): crops of 8 to 100 % of the image
# at 224x224, flips, Mixup, CutMix and label smoothing; 100 epochs, 10 of them warm-up; AdamW, weight decay 0.05.
# The rates are for a method (SSF: 1e-2, GPS: 1e-4 to 3e-3); 1e-3 is ours. Both average the weights (EMA), which this
# leaves out; what else differs between papers is in ../tasks/README.md.
# Data: data/fgvc/FOLDER with VPT's train.json, val.json and test.json, ../tasks/README.md.
_base_ = '../schedules/adamw_100e.py'

# ---- what one edits; the rest, with the rate, is in ../schedules/adamw_100e.py
suite = 'fgvc'
data_root = 'data/fgvc'
batch_size = 32           # images, 1 GPU; `--auto-scale-lr` adapts the rate to another number

# ---- for tools/sweep.py: what is tried is chosen on a tenth of the training images
sweep = dict(
    score='accuracy/top1', rates=[1e-4, 1e-3, 1e-2], weight_decays=[0.05],
    choose={'train_dataloader.dataset.split': 'train', 'val_dataloader.dataset.split': 'val'},
    data='configs/_base_/tasks/README.md says where it is had')

# ---- the data: all training images, the test set once, at the end. To choose settings, see a tenth of them instead:
# --cfg-options train_dataloader.dataset.split=train val_dataloader.dataset.split=val
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=248, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs')
]
train_dataloader = dict(
    batch_size=batch_size, num_workers=4, drop_last=True, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='e3va.FGVC', data_root=data_root, split='train+val', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=64, num_workers=4, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='e3va.FGVC', data_root=data_root, split='test', pipeline=test_pipeline, test_mode=True))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator

# ---- what goes with the schedule
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=2))
auto_scale_lr = dict(enable=False, base_batch_size=32)
