# For the demo's detector in 3 epochs: DMLoRA's scheme A, 4 branches, no reduction, 1-stage scalar.
_base_ = '../../../methods/dmlora_scheme_a.py'
method = dict(branches=4, learn_scale=True)
