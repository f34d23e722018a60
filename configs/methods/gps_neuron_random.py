# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), row Neuron Random of table 6: for each neuron k entries, drawn
# at random.
method = dict(type='GPS', k=1, criterion='random')
default_hooks = dict(gps=dict(type='e3va.GPSHook'))
optim_wrapper = dict(type='e3va.GPSOptimWrapper')
