# python tools/train.py configs/e3va/swin_b_imagenet_plusplus.py
# bash tools/dist_train.sh configs/e3va/swin_b_imagenet_plusplus.py 16
#
# E3VA++ (rank 32), classification on ImageNet-1K: Swin-B.
# Expect: not measured by us. The paper has no classification.
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940, sections 3 and 4.1.
# To edit: the task file for data, batch, rate and weights, the method file for the method's options.
_base_ = ['../_base_/tasks/imagenet_swin_b.py', '../methods/e3va_plusplus.py']

model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=_base_.method))
