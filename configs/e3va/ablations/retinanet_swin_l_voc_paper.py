# python tools/train.py configs/e3va/ablations/retinanet_swin_l_voc_paper.py
#
# Detection on Pascal VOC 07+12: RetinaNet, Swin-L. Everything that the paper leaves open as in the first author's
# earlier code.
# Expect: not measured by us. Paper, Table 1: AP 86.5.
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../retinanet_swin_l_voc.py'

method = dict(preset='paper')
model = dict(backbone=dict(method=method))
