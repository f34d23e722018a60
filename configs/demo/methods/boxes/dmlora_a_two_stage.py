# For the demo's detector in 3 epochs: DMLoRA's scheme A, 4 branches, no reduction, then 1 epoch for the scales.
_base_ = '../../../methods/dmlora_scheme_a.py'
method = dict(branches=4)
default_hooks = dict(dmlora=dict(scale_length=1))
