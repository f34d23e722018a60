# python tools/train.py configs/e3va/ablations/retinanet_swin_l_voc_no_skip.py
#
# Detection on Pascal VOC 07+12: RetinaNet, Swin-L. An adapter without its own `+ x`: the highway carries the
# adapters' outputs alone.
# Expect: not measured by us. Paper: section 3.3 has the `+ x`; no number without it.
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../retinanet_swin_l_voc.py'

method = dict(skip=False)
model = dict(backbone=dict(method=method))
