# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), as the public code trains it: all weights are in the optimizer and
# the gradients that are not wanted become zero, at the cost of full fine-tuning. For comparison; it needs
# weight_decay=0.
_base_ = './gps.py'
method = dict(mode='mask')
