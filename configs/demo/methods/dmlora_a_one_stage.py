# For the demo's few epochs: DMLoRA's scheme A, 8 branches, no reduction, 1-stage scalar.
_base_ = '../../methods/dmlora_scheme_a.py'
method = dict(learn_scale=True)
