# python tools/train.py configs/e3va/cascade_swin_b_coco_mix.py
# bash tools/dist_train.sh configs/e3va/cascade_swin_b_coco_mix.py 8
#
# E3VAMix (LoRA rank 8), instance segmentation on COCO: Cascade Mask R-CNN, Swin-B.
# Expect: not measured by us on this data; README.md here has what was.
# Source: ours, e3va/methods/mix.py.
# To edit: the task file for data, batch, rate and weights; here the method.
_base_ = '../_base_/tasks/coco_cascade_swin_b.py'

method = dict(type='E3VAMix', rank=8)
model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=method))
