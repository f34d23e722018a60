# python tools/train.py configs/e3va/ablations/retinanet_swin_l_voc_standard.py
#
# Detection on Pascal VOC 07+12: RetinaNet, Swin-L. Standard adapters with a middle width of 32 instead of low-rank
# ones.
# Expect: not measured by us. Paper, Table 5: AP 85.4 with 2.35 M trained parameters (low-rank: 86.5 with 1.79 M).
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../retinanet_swin_l_voc.py'

method = dict(adapter='standard', mid=32)
model = dict(backbone=dict(method=method))
