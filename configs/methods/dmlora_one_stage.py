# DMLoRA (Fang et al., ECCV 2024) with the 1-stage learning scalar of Table 5: the scales train with the branches.
_base_ = './dmlora.py'
method = dict(learn_scale=True)
default_hooks = dict(dmlora=dict(scale_length=None))
