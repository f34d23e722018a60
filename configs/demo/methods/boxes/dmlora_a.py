# For the demo's detector in 3 epochs: DMLoRA's scheme A, 4 branches, no reduction, the scale fixed.
_base_ = '../../../methods/dmlora_scheme_a.py'
method = dict(branches=4)
