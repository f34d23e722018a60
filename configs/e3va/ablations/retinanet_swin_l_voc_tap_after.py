# python tools/train.py configs/e3va/ablations/retinanet_swin_l_voc_tap_after.py
#
# Detection on Pascal VOC 07+12: RetinaNet, Swin-L. The trunk keeps its DropPath (0.2), and adapters read a branch
# after it.
# Expect: not measured by us. Paper: not stated; no number. In eval mode, the default, both taps are the same.
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../retinanet_swin_l_voc.py'

method = dict(trunk_mode='config', tap='after')
model = dict(backbone=dict(method=method))
