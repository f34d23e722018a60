# python tools/train.py configs/gps/upernet_swin_l_ade20k_gps.py
# bash tools/dist_train.sh configs/gps/upernet_swin_l_ade20k_gps.py 8
#
# GPS (K = 1), semantic segmentation on ADE20K: UPerNet, Swin-L.
# Expect: not measured by us. The paper segments polyps, with SAM.
# Source: Zhang et al., CVPR 2024, arXiv:2312.10136, section 3; the task loss of 500 batches in each process selects.
# To edit: the task file for data, batch, rate and weights; here the method.
_base_ = '../_base_/tasks/ade20k_upernet_swin_l.py'

method = dict(type='GPS', k=1)
default_hooks = dict(gps=dict(type='e3va.GPSHook', loss='task', batches=500))
optim_wrapper = dict(type='e3va.GPSOptimWrapper')
model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=method))
