# For the demo's few epochs: DMLoRA's scheme A, 8 branches, no reduction, then 2 epochs for the scales.
_base_ = '../../methods/dmlora_scheme_a.py'
default_hooks = dict(dmlora=dict(scale_length=2))
