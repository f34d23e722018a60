# python tools/train.py configs/pear/retinanet_swin_l_voc_pear_adaptformer.py
# bash tools/dist_train.sh configs/pear/retinanet_swin_l_voc_pear_adaptformer.py 8
#
# Pear on AdaptFormer (rank 8), detection on Pascal VOC 07+12: RetinaNet, Swin-L. Units are shared within a stage.
# Expect: not measured by us; the paper has no dense task.
# Source: Zhong and Zhou, arXiv:2409.19733, section 2. The warm-up is ours,
# one of the four epochs that go three times over the data.
# To edit: the task file for data, batch, rate and weights; here the method.
_base_ = '../_base_/tasks/voc_retinanet_swin_l.py'

method = dict(type='AdaptFormer', rank=8, scale=0.1, dropout=0.1, bias=False)
default_hooks = dict(pear=dict(type='e3va.PearHook', warmup=1, ratio=0.5))
optim_wrapper = dict(type='e3va.PearOptimWrapper')
model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=method))
