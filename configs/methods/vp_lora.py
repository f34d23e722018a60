# Vanilla pruning of LoRA, not quantised (Pear (Zhong and Zhou, arXiv:2409.19733), Fig. 3): as
# pear_lora.py, but nothing takes the place of what is pruned.
_base_ = './pear_lora.py'
default_hooks = dict(pear=dict(share=False))
