# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), row Net Random of table 6: as many entries as `gps`, drawn from
# the whole trunk.
_base_ = './gps.py'
method = dict(level='net', criterion='random')
