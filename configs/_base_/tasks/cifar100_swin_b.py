# python tools/train.py configs/_base_/tasks/cifar100_swin_b.py --method e3va    (or full, fixed, lora, a file)
#
# The task: classification on CIFAR-100 shown at 224x224, Swin-B from IN-22K, 30 epochs. Names no method.
# Expect: not measured by us. The E3VA paper has no classification.
# Source: mmpretrain's Swin-B, CIFAR-100 and AdamW for Swin. The settings are ours: the schedule of swin_b_imagenet.py,
# and 1e-3 with 64 images as in papers on adapters in classification (e.g. Pear, arXiv:2409.19733).
# Data: data/cifar100; mmpretrain downloads it when it is missing.
_base_ = [
    'mmpretrain::_base_/models/swin_transformer/base_224.py', 'mmpretrain::_base_/datasets/cifar100_bs16.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py', 'mmpretrain::_base_/default_runtime.py'
]

# ---- what one edits
batch_size = 64           # images per GPU
learning_rate = 1e-3      # for 1 GPU x 64 images; `--auto-scale-lr` adapts it to another number
max_epochs = 30
warmup_epochs = 5
checkpoint = 'https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/swin-base_3rdparty_in21k.pth'

# ---- for tools/sweep.py; there is no split to choose on
sweep = dict(
    score='accuracy/top1', rates=[learning_rate], weight_decays=[0.05],
    data='make it, and mmpretrain downloads CIFAR-100 there')

# ---- the model
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')),
    head=dict(num_classes=100))

# ---- the data: CIFAR's crop at 32x32, then the size that the trunk was trained at, and the trunk's normalisation (RGB)
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
resize = dict(type='Resize', scale=224, backend='pillow', interpolation='bicubic')
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4), resize,
    dict(type='RandomFlip', prob=0.5, direction='horizontal'), dict(type='PackInputs')
]
test_pipeline = [resize, dict(type='PackInputs')]
train_dataloader = dict(batch_size=batch_size, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=batch_size, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# ---- the schedule
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=warmup_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=warmup_epochs)
]
optim_wrapper = dict(optimizer=dict(lr=learning_rate), clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(enable=False, base_batch_size=64)
