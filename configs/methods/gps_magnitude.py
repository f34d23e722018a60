# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), row Magnitude of table 6: for each neuron the k entries with
# the largest weights.
_base_ = './gps.py'
method = dict(criterion='magnitude')
