# AdaMix (Wang et al., EMNLP 2022, arXiv:2205.12410): 4 adapters behind each MLP, of which every step draws one down and
# one up projection at random; a second pass with another draw is to agree (symmetric KL); evaluation takes their mean.
# The paper is about language models (rank 16 or 48). ViT-B once the projections are one: 304,320 parameters.
# A detector has no logits of one distribution: default_hooks.adamix.consistency=0.
method = dict(type='AdaMix', rank=16, branches=4)
optim_wrapper = dict(type='e3va.DMLoRAOptimWrapper')
default_hooks = dict(adamix=dict(type='e3va.AdaMixHook', consistency=1.))
