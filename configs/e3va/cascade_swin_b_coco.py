# python tools/train.py configs/e3va/cascade_swin_b_coco.py
# bash tools/dist_train.sh configs/e3va/cascade_swin_b_coco.py 8
#
# E3VA (rank 8), instance segmentation on COCO: Cascade Mask R-CNN, Swin-B.
# Expect: not measured by us. Paper, Table 2: box AP 50.5, mask AP 43.8; 1.20 M trained in the trunk, 7639 MB.
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940, sections 3 and 4.1.
# To edit: the task file for data, batch, rate and weights, the method file for the method's options.
_base_ = ['../_base_/tasks/coco_cascade_swin_b.py', '../methods/e3va.py']

model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=_base_.method))
