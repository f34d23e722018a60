# For the demo's few epochs: DMLoRA's scheme E, 8 branches, halved every epoch, 1-stage scalar.
_base_ = '../../methods/dmlora_scheme_e.py'
method = dict(learn_scale=True)
default_hooks = dict(dmlora=dict(every=1))
