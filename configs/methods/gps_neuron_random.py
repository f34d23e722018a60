# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), row Neuron Random of table 6: for each neuron k entries, drawn
# at random.
_base_ = './gps.py'
method = dict(criterion='random')
