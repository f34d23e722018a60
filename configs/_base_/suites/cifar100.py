# CIFAR-100, all 50,000 images (VTAB-1k has a task with 1,000): what its tasks share. A task file names the model.
#
# Source: the recipe of SSF (https://github.com/dongzelian/SSF), which GPS follows: that of imagenet.py, with 100 epochs
# and 10 of warm-up. CIFAR's images are RGB in mmpretrain: the task file says so to the preprocessor.
# Data: data/cifar100; mmpretrain downloads it when it is missing.
_base_ = './imagenet.py'

# ---- what one edits
suite = 'cifar100'
batch_size = 64           # images per GPU
learning_rate = 1e-3      # for 4 GPUs x 64 images; `--auto-scale-lr` adapts it to another number
max_epochs = 100
warmup_epochs = 10

# ---- for tools/sweep.py
sweep = dict(data='make it, and mmpretrain downloads CIFAR-100 there')

# ---- the data
pack = dict(type='PackInputs')
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        _delete_=True, type='CIFAR100', data_root='data/cifar100', split='train',
        pipeline=[*_base_.augmentation, pack]))
val_dataloader = dict(
    dataset=dict(
        _delete_=True, type='CIFAR100', data_root='data/cifar100', split='test', pipeline=[*_base_.centre, pack]))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, ))
test_evaluator = val_evaluator

# ---- the schedule: the test set is seen at the end
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=learning_rate))
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warmup_epochs),
    dict(_base_.param_scheduler[1], begin=warmup_epochs, end=max_epochs)
]
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=2))
