# python tools/train.py configs/e3va/ablations/retinanet_swin_l_voc_init_random.py
#
# Detection on Pascal VOC 07+12: RetinaNet, Swin-L. Every factor starts random, so training does not start at the
# stock model.
# Expect: not measured by us. Paper: not stated; the first author's earlier code (LoRand) does this; no number.
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../retinanet_swin_l_voc.py'

method = dict(init='random')
model = dict(backbone=dict(method=method))
