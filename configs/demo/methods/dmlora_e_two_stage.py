# For the demo's few epochs: DMLoRA's scheme E, 8 branches, halved every epoch, then 2 epochs for the scales.
_base_ = '../../methods/dmlora_scheme_e.py'
default_hooks = dict(dmlora=dict(every=1, scale_length=2))
