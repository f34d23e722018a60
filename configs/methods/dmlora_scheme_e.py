# DMLoRA (Fang et al., ECCV 2024), scheme E of Tables 3 and 4: the paper's choice, a random half of the
# branches is dropped; the scale is fixed.
_base_ = './dmlora.py'
default_hooks = dict(dmlora=dict(scale_length=None))
