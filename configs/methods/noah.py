# The supernet of NOAH (Zhang et al., TPAMI 2024, arXiv:2206.04673): in every block 10 prompts, a LoRA and an adapter
# of rank 10, of which each step trains some, in sizes 1, 5 or 10, in the first 3, 6, 9 or 12 blocks. It is for
# tools/search.py, which writes the file of the best subnet; that one is what is trained and compared.
# The published subnets of VTAB-1k have 0.36 M parameters on average. 500 epochs at 5e-4 with decay 1e-4, then the
# search, then the subnet's 100 epochs; inputs normalised by ImageNet's mean and deviation.
method = dict(type='NOAH', sizes=(1, 5, 10))
optim_wrapper = dict(type='e3va.DMLoRAOptimWrapper')
default_hooks = dict(noah=dict(type='e3va.NOAHHook'))
