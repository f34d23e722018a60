# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), row Net Random of table 6: as many entries as `gps`, drawn from
# the whole trunk.
method = dict(type='GPS', k=1, level='net', criterion='random')
default_hooks = dict(gps=dict(type='e3va.GPSHook'))
optim_wrapper = dict(type='e3va.GPSOptimWrapper')
