# python tools/train.py configs/e3va/ablations/retinanet_swin_l_voc_stacked.py
#
# Detection on Pascal VOC 07+12: RetinaNet, Swin-L. A block's first adapter enters its second one (Figure 3) instead
# of running beside it.
# Expect: not measured by us. Paper, Table 5: AP 85.9 at 8.2 batches/s in inference (parallel: 86.5).
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../retinanet_swin_l_voc.py'

method = dict(arrangement='stacked')
model = dict(backbone=dict(method=method))
