# For the demo's detector in 3 epochs: DMLoRA's scheme E, 4 branches, halved every 1 epoch, the scale fixed.
_base_ = '../../../methods/dmlora_scheme_e.py'
method = dict(branches=4)
default_hooks = dict(dmlora=dict(every=1))
