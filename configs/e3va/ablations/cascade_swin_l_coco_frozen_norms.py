# python tools/train.py configs/e3va/ablations/cascade_swin_l_coco_frozen_norms.py
#
# Instance segmentation on COCO: Cascade Mask R-CNN, Swin-L. The norms before the FPN stay frozen.
# Expect: not measured by us. Paper, Table 6, second half: below trained norms (box AP 52.2).
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../cascade_swin_l_coco.py'

method = dict(train_out_norms=False)
model = dict(backbone=dict(method=method))
