# SPT-LoRA (He et al., ICCV 2023, arXiv:2303.08566): the weights with the largest squared gradients train, and a matrix
# that has many of them gets a LoRA of rank 8 instead; some batches of training data decide before the first step.
# The paper takes the best of budgets from 200,000 to 1,000,000 parameters for each task (mean on VTAB-1k 0.63 % of
# ViT-B with its heads, in GPS's Table 3), AdamW 1e-3 with decay 1e-4, 100 epochs; its code 16 batches of 32 to select.
method = dict(type='SPT', module='lora', budget=400_000, rank=8)
default_hooks = dict(spt=dict(type='e3va.SPTHook', batches=16))
