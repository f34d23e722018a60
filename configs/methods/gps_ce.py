# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), row Head+CE of table 6: the gradients of the loss that is trained,
# through the new head, select.
method = dict(type='GPS', k=1)
default_hooks = dict(gps=dict(type='e3va.GPSHook', loss='task'))
optim_wrapper = dict(type='e3va.GPSOptimWrapper')
