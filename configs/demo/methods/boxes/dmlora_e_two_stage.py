# For the demo's detector in 3 epochs: DMLoRA's scheme E, 4 branches, halved every 1 epoch, then 1 epoch for the scales.
_base_ = '../../../methods/dmlora_scheme_e.py'
method = dict(branches=4)
default_hooks = dict(dmlora=dict(every=1, scale_length=1))
