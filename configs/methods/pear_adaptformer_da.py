# Pear (Zhong and Zhou, arXiv:2409.19733) on AdaptFormer, not quantised, with the knowledge checkpoint DA:
# each pruned unit is added to the one that takes its place (equation 2).
_base_ = './pear_adaptformer.py'
default_hooks = dict(pear=dict(checkpoint='da'))
