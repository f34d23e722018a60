# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), row Net of table 6: as many entries as `gps`, which compete in the
# whole trunk, not in a neuron; most of them then lie in its last layers.
_base_ = './gps.py'
method = dict(level='net')
