# python tools/train.py configs/e3va/swin_b_cifar100_mix.py
#
# E3VAMix (LoRA rank 8), classification on CIFAR-100: Swin-B.
# Expect: not measured by us on this data; README.md here has what was.
# Source: ours, e3va/methods/mix.py.
# To edit: the task file for data, batch, rate and weights; here the method.
_base_ = '../_base_/tasks/cifar100_swin_b.py'

method = dict(type='E3VAMix', rank=8)
model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=method))
