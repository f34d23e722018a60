# python tools/train.py configs/e3va/ablations/retinanet_swin_l_voc_trunk_config.py
#
# Detection on Pascal VOC 07+12: RetinaNet, Swin-L. The trunk trains with its config's own DropPath (0.2) instead of
# in eval mode.
# Expect: not measured by us. Paper: not stated; no number.
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../retinanet_swin_l_voc.py'

method = dict(trunk_mode='config')
model = dict(backbone=dict(method=method))
