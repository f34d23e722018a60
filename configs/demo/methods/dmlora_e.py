# For the demo's few epochs: DMLoRA's scheme E, 8 branches, halved every epoch, the scale fixed.
_base_ = '../../methods/dmlora_scheme_e.py'
method = dict(branches=8)
default_hooks = dict(dmlora=dict(every=1))
