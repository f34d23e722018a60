# DMLoRA (Fang et al., ECCV 2024), scheme B of Tables 3 and 4: each two branches become their mean; the scale is fixed.
_base_ = './dmlora.py'
default_hooks = dict(dmlora=dict(scale_length=None, halving='average'))
