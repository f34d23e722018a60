# VP-LoRA of Table II (Pear (Zhong and Zhou, arXiv:2409.19733)): as pear_bi_lora.py, but nothing takes
# the place of what is pruned.
_base_ = './pear_bi_lora.py'
default_hooks = dict(pear=dict(share=False))
