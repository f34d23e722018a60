# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), selected on by the contrastive loss in detection and segmentation
# too, of the trunk's features averaged over boxes, or over the pixels of a class.
_base_ = './gps.py'
default_hooks = dict(gps=dict(loss='supcon'))
