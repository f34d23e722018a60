# SPT-Adapter (He et al., ICCV 2023, arXiv:2303.08566): as spt_lora.py, with an adapter of rank 8 behind a matrix that
# has many sensitive weights (mean on VTAB-1k 0.44 % of ViT-B with its heads, in GPS's Table 3).
method = dict(type='SPT', module='adapter', budget=400_000, rank=8)
default_hooks = dict(spt=dict(type='e3va.SPTHook', batches=16))
