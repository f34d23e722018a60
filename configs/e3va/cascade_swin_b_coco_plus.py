# python tools/train.py configs/e3va/cascade_swin_b_coco_plus.py
# bash tools/dist_train.sh configs/e3va/cascade_swin_b_coco_plus.py 8
#
# E3VA+ (rank 16), instance segmentation on COCO: Cascade Mask R-CNN, Swin-B.
# Expect: not measured by us. Paper, Table 2: box AP 51.0, mask AP 44.2; 2.35 M trained in the trunk, 7761 MB.
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940, sections 3 and 4.1.
# To edit: the task file for data, batch, rate and weights, the method file for the method's options.
_base_ = ['../_base_/tasks/coco_cascade_swin_b.py', '../methods/e3va_plus.py']

model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=_base_.method))
