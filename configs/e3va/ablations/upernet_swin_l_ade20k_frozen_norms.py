# python tools/train.py configs/e3va/ablations/upernet_swin_l_ade20k_frozen_norms.py
#
# Semantic segmentation on ADE20K: UPerNet, Swin-L. The norms before the decode head stay frozen.
# Expect: not measured by us. Paper, Table 6, second half: below trained norms (mIoU 49.64).
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../upernet_swin_l_ade20k.py'

method = dict(train_out_norms=False)
model = dict(backbone=dict(method=method))
