# python tools/train.py configs/dmlora/retinanet_swin_l_voc_dmlora.py
# bash tools/dist_train.sh configs/dmlora/retinanet_swin_l_voc_dmlora.py 8
#
# DMLoRA (rank 8, 4 branches), detection on Pascal VOC 07+12: RetinaNet, Swin-L.
# Expect: not measured by us. The paper has no detection.
# Source: Fang et al., ECCV 2024, sections 3 and 4.1; the lengths are ours: an epoch is three passes here and
# there are 4, so branches are halved after each of the first two, and the scales train for a fifth one.
# To edit: the task file for data, batch, rate and weights; here the method.
_base_ = '../_base_/tasks/voc_retinanet_swin_l.py'

method = dict(type='DMLoRA', rank=8, branches=4, scale=1., roles=('q', 'v'))
default_hooks = dict(dmlora=dict(
    type='e3va.DMLoRAHook', every=1, down_to=1, halving='dropout', scale_length=1, scale_lr=1e-2))
optim_wrapper = dict(type='e3va.DMLoRAOptimWrapper')
model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=method))
