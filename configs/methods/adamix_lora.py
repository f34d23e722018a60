# AdaMix of LoRAs (Wang et al., EMNLP 2022, arXiv:2205.12410): as adamix.py, with 4 LoRAs on q and v, whose mean merges
# into the trunk. ViT-B, rank 8, once they are one: 294,912 parameters.
method = dict(type='AdaMix', module='lora', rank=8, branches=4)
optim_wrapper = dict(type='e3va.DMLoRAOptimWrapper')
default_hooks = dict(adamix=dict(type='e3va.AdaMixHook', consistency=1.))
