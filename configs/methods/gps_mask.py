# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), as the public code trains it: all weights are in the optimizer and
# the gradients that are not wanted become zero, at the cost of full fine-tuning. For comparison; it needs
# weight_decay=0.
method = dict(type='GPS', k=1, mode='mask')
default_hooks = dict(gps=dict(type='e3va.GPSHook'))
optim_wrapper = dict(type='e3va.GPSOptimWrapper')
