# DMLoRA (Fang et al., ECCV 2024), scheme C of Tables 3 and 4: the up factor is a single branch (SU); the
# scale is fixed.
_base_ = './dmlora.py'
method = dict(share='up')
default_hooks = dict(dmlora=dict(scale_length=None))
