# python tools/train.py configs/e3va/ablations/upernet_swin_l_ade20k_trainable_downsampling.py
#
# Semantic segmentation on ADE20K: UPerNet, Swin-L. The highway has trainable copies of the downsampling layers.
# Expect: not measured by us. Paper, Table 6: mIoU 49.97 (inherited and frozen: 49.64).
# Source: Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940.
_base_ = '../upernet_swin_l_ade20k.py'

method = dict(downsampling='trainable')
model = dict(backbone=dict(method=method))
