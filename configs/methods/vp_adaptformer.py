# Vanilla pruning of AdaptFormer, not quantised (Pear (Zhong and Zhou, arXiv:2409.19733), Fig. 3): as
# pear_adaptformer.py, but nothing takes the place of what is pruned.
_base_ = './pear_adaptformer.py'
default_hooks = dict(pear=dict(share=False))
