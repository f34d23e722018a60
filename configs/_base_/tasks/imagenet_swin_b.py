# python tools/train.py configs/_base_/tasks/imagenet_swin_b.py --method e3va    (or full, fixed, lora, a file)
#
# The task: classification on ImageNet-1K, Swin-B from IN-22K, 30 epochs. Names no method.
# Expect: not measured by us. The E3VA paper has no classification; Swin's authors reach 85.2 top-1 with the whole
# trunk tuned (85.16 in mmpretrain's table, swin-base_in21k-pre-3rdparty_in1k).
# Source: mmpretrain's own model, data and AdamW; 30 epochs with 5 of warm-up are Swin's schedule from IN-22K to IN-1K
# (https://github.com/microsoft/Swin-Transformer), whose rate of 2e-5 per 512 images is for a whole trunk: with
# `--method full`, take that.
# Data: data/imagenet/{train,val}.
_base_ = 'mmpretrain::swin_transformer/swin-base_16xb64_in1k.py'

# ---- what one edits
batch_size = 64           # images per GPU
learning_rate = 1e-3      # for 16 GPUs x 64 images; `--auto-scale-lr` adapts it to another number
max_epochs = 30
warmup_epochs = 5
checkpoint = 'https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/swin-base_3rdparty_in21k.pth'

# ---- for tools/sweep.py; there is no split to choose on
sweep = dict(
    score='accuracy/top1', rates=[learning_rate], weight_decays=[0.05],
    data='the first lines of the file say what belongs there')

# ---- the model
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')))

# ---- the schedule
train_dataloader = dict(batch_size=batch_size)
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=warmup_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=warmup_epochs)
]
optim_wrapper = dict(optimizer=dict(lr=learning_rate))
auto_scale_lr = dict(enable=False, base_batch_size=1024)
