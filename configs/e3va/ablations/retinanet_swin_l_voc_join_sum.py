# python tools/train.py configs/e3va/ablations/retinanet_swin_l_voc_join_sum.py
#
# Detection on Pascal VOC 07+12: RetinaNet, Swin-L. The neck reads norm(l + e), the sum of trunk and highway, instead
# of norm(e).
# Expect: not measured by us. Paper: section 3.2 says "alongside the backbone", not how; no number.
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../retinanet_swin_l_voc.py'

method = dict(join='sum')
model = dict(backbone=dict(method=method))
