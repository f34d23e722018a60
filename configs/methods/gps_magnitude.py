# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), row Magnitude of table 6: for each neuron the k entries with
# the largest weights.
method = dict(type='GPS', k=1, criterion='magnitude')
default_hooks = dict(gps=dict(type='e3va.GPSHook'))
optim_wrapper = dict(type='e3va.GPSOptimWrapper')
