# python tools/train.py configs/e3va/ablations/retinanet_swin_l_voc_frozen_norms.py
#
# Detection on Pascal VOC 07+12: RetinaNet, Swin-L. The norms before the FPN stay frozen.
# Expect: not measured by us. Paper, Table 6, second half: below trained norms (AP 86.5).
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../retinanet_swin_l_voc.py'

method = dict(train_out_norms=False)
model = dict(backbone=dict(method=method))
