# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), row Head+CE of table 6: the gradients of the loss that is trained,
# through the new head, select. A head that starts at zero (mmpretrain's of ViTs) would let none through: for the
# selection alone it has random weights, truncated normal of deviation 0.02 as timm's heads in the public code.
_base_ = './gps.py'
default_hooks = dict(gps=dict(loss='task'))
