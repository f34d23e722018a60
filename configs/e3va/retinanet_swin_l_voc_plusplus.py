# python tools/train.py configs/e3va/retinanet_swin_l_voc_plusplus.py
# bash tools/dist_train.sh configs/e3va/retinanet_swin_l_voc_plusplus.py 8
#
# E3VA++ (rank 32), detection on Pascal VOC 07+12: RetinaNet, Swin-L.
# Expect: not measured by us. Paper, Table 1: AP 87.0; 7.00 M trained in the trunk, 5405 MB.
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940, sections 3 and 4.1.
# To edit: the task file for data, batch, rate and weights, the method file for the method's options.
_base_ = ['../_base_/tasks/voc_retinanet_swin_l.py', '../methods/e3va_plusplus.py']

model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=_base_.method))
