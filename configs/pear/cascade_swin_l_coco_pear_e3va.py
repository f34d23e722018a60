# python tools/train.py configs/pear/cascade_swin_l_coco_pear_e3va.py
# bash tools/dist_train.sh configs/pear/cascade_swin_l_coco_pear_e3va.py 8
#
# Pear on E3VA (rank 8): the highway's adapters, shared within a stage. COCO: Cascade Mask R-CNN, Swin-L.
# Expect: not measured by us; the paper has no dense task.
# Source: Zhong and Zhou, arXiv:2409.19733, section 2; the highway: Yin et al., ACM MM 2024. The warm-up is ours,
# a tenth of the run, as the paper has it.
# To edit: the task file for data, batch, rate and weights; here the method.
_base_ = '../_base_/tasks/coco_cascade_swin_l.py'

method = dict(type='E3VA', rank=8)
default_hooks = dict(pear=dict(type='e3va.PearHook', warmup=4, ratio=0.5, scope='group'))
optim_wrapper = dict(type='e3va.PearOptimWrapper')
model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=method))
