# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), row Layer of table 6: as many entries as `gps`, which compete in
# a whole layer, not in a neuron.
_base_ = './gps.py'
method = dict(level='layer')
