# 100 epochs of AdamW, the rate warmed up and then falling along a cosine: what the classification suites start from.
#
# Source: the recipe of SSF (https://github.com/dongzelian/SSF), which GPS takes over: 10 epochs of warm-up, a weight
# decay of 0.05. Its rates are for a method; 1e-3 is ours. A suite says what it has otherwise.
_base_ = 'mmpretrain::_base_/default_runtime.py'

# ---- what one edits
learning_rate = 1e-3
weight_decay = 0.05
max_epochs = 100
warmup_epochs = 10

# ---- the schedule: the test set is seen at the end
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=learning_rate, weight_decay=weight_decay))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, end=warmup_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-8, by_epoch=True, begin=warmup_epochs, end=max_epochs,
         convert_to_iter_based=True)
]
