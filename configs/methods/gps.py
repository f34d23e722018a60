# GPS (Zhang et al., CVPR 2024, arXiv:2312.10136): of each neuron's weights the k with the largest gradients train, and
# all biases; a pass over the training data selects them before the first step. ViT-B/16, k = 1: 167,424 parameters.
# The paper takes k = 1 to 20, Adam without decay, 100 epochs. A classifier is selected on by the supervised contrastive
# loss of two views of its images, a detector or segmenter by its own loss (the authors' SAM too); see GPSHook.
method = dict(type='GPS', k=1)
default_hooks = dict(gps=dict(type='e3va.GPSHook'))
optim_wrapper = dict(type='e3va.GPSOptimWrapper')
