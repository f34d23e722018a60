# Compacter++: Compacter behind the MLP alone (the same paper; ViT-B: 19,584 parameters beside the 64 shared ones).
method = dict(type='Compacter', rank=48, n=4, bias=False, roles=('fc2',))
