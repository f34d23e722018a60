# python tools/train.py configs/e3va/ablations/cascade_swin_l_coco_trainable_downsampling.py
#
# Instance segmentation on COCO: Cascade Mask R-CNN, Swin-L. The highway has trainable copies of the downsampling
# layers.
# Expect: not measured by us. Paper, Table 6: box AP 51.7 (inherited and frozen: 52.2).
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../cascade_swin_l_coco.py'

method = dict(downsampling='trainable')
model = dict(backbone=dict(method=method))
