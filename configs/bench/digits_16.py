# Handwritten digits, few-shot: 16 images of each digit to train, else as digits.py.
#
# python tools/sweep.py configs/bench/digits_16.py --methods fixed,lora     the whole protocol, see README.md here
# python tools/train.py configs/bench/digits_16.py --method lora            one run
_base_ = 'digits.py'

# ---- what one edits
epochs = 15
batch = 16

# ---- the task
train_dataloader = dict(batch_size=batch, drop_last=False, dataset=dict(ann_file='train_16.txt'))

# ---- the schedule
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, T_max=epochs, convert_to_iter_based=True)]
default_hooks = dict(checkpoint=dict(interval=epochs // 3))
