# For the demo's detector in 3 epochs: DMLoRA's scheme E, 4 branches, halved every 1 epoch, 1-stage scalar.
_base_ = '../../../methods/dmlora_scheme_e.py'
method = dict(branches=4, learn_scale=True)
default_hooks = dict(dmlora=dict(every=1))
