# python tools/train.py configs/e3va/swin_b_cifar100.py
#
# E3VA (rank 8), classification on CIFAR-100: Swin-B.
# Expect: not measured by us. The paper has no classification.
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940, sections 3 and 4.1.
# To edit: the task file for data, batch, rate and weights, the method file for the method's options.
_base_ = ['../_base_/tasks/cifar100_swin_b.py', '../methods/e3va.py']

model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=_base_.method))
