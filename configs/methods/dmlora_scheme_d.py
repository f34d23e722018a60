# DMLoRA (Fang et al., ECCV 2024), scheme D of Tables 3 and 4: the down factor is a single branch (SD); the
# scale is fixed.
_base_ = './dmlora.py'
method = dict(share='down')
default_hooks = dict(dmlora=dict(scale_length=None))
