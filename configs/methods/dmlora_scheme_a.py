# DMLoRA (Fang et al., ECCV 2024), scheme A of Tables 3 and 4: no reduction, all branches train to the end
# (as in AdaMix); the scale is fixed.
_base_ = './dmlora.py'
default_hooks = dict(dmlora=dict(scale_length=None, halving='none'))
