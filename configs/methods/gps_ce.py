# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), row Head+CE of table 6: the gradients of the loss that is trained,
# through the new head, select.
_base_ = './gps.py'
default_hooks = dict(gps=dict(loss='task'))
