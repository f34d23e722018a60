# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), row Layer of table 6: as many entries as `gps`, which compete in
# a whole layer, not in a neuron.
method = dict(type='GPS', k=1, level='layer')
default_hooks = dict(gps=dict(type='e3va.GPSHook'))
optim_wrapper = dict(type='e3va.GPSOptimWrapper')
