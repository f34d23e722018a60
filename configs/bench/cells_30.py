# Blood cells by 30 % of their training images, 62, in as many steps: does a method over-fit? Else as cells.py.
#
# python tools/sweep.py configs/bench/cells_30.py --methods fixed,lora     the whole protocol, see README.md here
# python tools/train.py configs/bench/cells_30.py --method lora            one run
_base_ = 'cells.py'

# ---- what one edits
epochs = 10

# ---- the task
wide = [1e-3, 3e-3, 1e-2, 3e-2]
sweep = dict(rates_of=dict(
    full=[3e-4, 1e-3, 3e-3], **dict.fromkeys(['fixed', 'partial', 'lora', 'lora_last', 'bitfit', 'gps'], wide)))
del wide                                                                # it says what is tried, not what is run
train_dataloader = dict(dataset=dict(indices=[i for i in range(205) if i % 10 < 3]))

# ---- the schedule
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, T_max=epochs, convert_to_iter_based=True)]
default_hooks = dict(checkpoint=dict(interval=epochs // 3))
