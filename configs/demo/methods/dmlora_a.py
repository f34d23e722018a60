# For the demo's few epochs: DMLoRA's scheme A, 8 branches, no reduction, the scale fixed.
_base_ = '../../methods/dmlora_scheme_a.py'
method = dict(branches=8)
