# DMLoRA (Fang et al., ECCV 2024), its full method: n LoRA branches on q and v of which each step draws one, halved at
# random every k epochs, then the 2-stage learning scalar, which lengthens the run by `scale_length` epochs.
# Rank 8, n of 4 to 32 and a scale of 1 or 10 by data set, 10 epochs at 1e-2 for the scales (section 4.1); k and the
# last number of branches are in no public text. ViT-B: 294,912 parameters once the branches are one, merged none.
# k and the second stage are given as shares of the run, a tenth of any config's; integers count epochs.
method = dict(type='DMLoRA', rank=8, branches=8, scale=1.)
optim_wrapper = dict(type='e3va.DMLoRAOptimWrapper')
default_hooks = dict(dmlora=dict(
    type='e3va.DMLoRAHook', every=0.1, down_to=1, halving='dropout', scale_length=0.1, scale_lr=1e-2))
