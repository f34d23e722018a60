# python tools/train.py configs/dmlora/cascade_swin_b_coco_dmlora.py
# bash tools/dist_train.sh configs/dmlora/cascade_swin_b_coco_dmlora.py 8
#
# DMLoRA (rank 8, 8 branches), instance segmentation on COCO: Cascade Mask R-CNN, Swin-B.
# Expect: not measured by us. The paper has no detection.
# Source: Fang et al., ECCV 2024, sections 3 and 4.1; the lengths are ours: about a tenth of the 36 epochs,
# as `dmlora.py` has of 100, for a halving (after 4, 8 and 12) and for the scales.
# To edit: the task file for data, batch, rate and weights; here the method.
_base_ = '../_base_/tasks/coco_cascade_swin_b.py'

method = dict(type='DMLoRA', rank=8, branches=8, scale=1., roles=('q', 'v'))
default_hooks = dict(dmlora=dict(
    type='e3va.DMLoRAHook', every=4, down_to=1, halving='dropout', scale_length=4, scale_lr=1e-2))
optim_wrapper = dict(type='e3va.DMLoRAOptimWrapper')
model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=method))
