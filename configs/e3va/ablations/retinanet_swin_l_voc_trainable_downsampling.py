# python tools/train.py configs/e3va/ablations/retinanet_swin_l_voc_trainable_downsampling.py
#
# Detection on Pascal VOC 07+12: RetinaNet, Swin-L. The highway has trainable copies of the downsampling layers.
# Expect: not measured by us. Paper, Table 6: AP 86.7 (inherited and frozen: 86.5).
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../retinanet_swin_l_voc.py'

method = dict(downsampling='trainable')
model = dict(backbone=dict(method=method))
