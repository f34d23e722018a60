# python tools/train.py configs/dmlora/upernet_swin_l_ade20k_dmlora.py
# bash tools/dist_train.sh configs/dmlora/upernet_swin_l_ade20k_dmlora.py 8
#
# DMLoRA (rank 8, 8 branches), semantic segmentation on ADE20K: UPerNet, Swin-L.
# Expect: not measured by us. The paper has no segmentation.
# Source: Fang et al., ECCV 2024, sections 3 and 4.1; the lengths are ours, in iterations as this loop counts
# them: a tenth of the 160,000 for a halving and for the scales, as `dmlora.py` has of 100 epochs.
# To edit: the task file for data, batch, rate and weights; here the method.
_base_ = '../_base_/tasks/ade20k_upernet_swin_l.py'

method = dict(type='DMLoRA', rank=8, branches=8, scale=1., roles=('q', 'v'))
default_hooks = dict(dmlora=dict(
    type='e3va.DMLoRAHook', every=16000, down_to=1, by_epoch=False, halving='dropout', scale_length=16000,
    scale_lr=1e-2))
optim_wrapper = dict(type='e3va.DMLoRAOptimWrapper')
model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=method))
