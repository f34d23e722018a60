# python tools/train.py configs/gps/swin_b_cub_gps.py
#
# GPS (K = 2), fine-grained classification on CUB-200-2011: Swin-B.
# Expect: not measured by us. Paper, Table 4: 92.56 in the mean of the five FGVC tasks, 0.95 % trained with the heads.
# Source: Zhang et al., CVPR 2024, arXiv:2312.10136, section 4.2; the settings are those of the authors' script
# for ViT-B (../methods/gps.yml), as none is public for this trunk.
# To edit: the task file for data and weights; here the method and its settings.
_base_ = '../_base_/tasks/fgvc_cub_swin_b.py'

method = dict(type='GPS', k=2)
default_hooks = dict(gps=dict(type='e3va.GPSHook'))
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(
    type='e3va.GPSOptimWrapper', optimizer=dict(_delete_=True, type='Adam', lr=3e-3, weight_decay=0.))
model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=method))
