# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136), selected on by the contrastive loss in detection and segmentation
# too, of the trunk's features averaged over boxes, or over the pixels of a class.
method = dict(type='GPS', k=1)
default_hooks = dict(gps=dict(type='e3va.GPSHook', loss='supcon'))
optim_wrapper = dict(type='e3va.GPSOptimWrapper')
