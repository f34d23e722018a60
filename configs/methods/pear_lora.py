# Pear (Zhong and Zhou, arXiv:2409.19733) on LoRA: after a tenth of the run (10 epochs of 100 in the paper) the half of
# the pairs (A, B) that contributes least is pruned, and the best ones serve in its place. Not quantised, rank 8 on q
# and v, as in Fig. 3 (where no rank is given). ViT-B: 294,912 parameters in the warm-up, then 147,456. On Swin a pair
# serves within its stage and role.
_base_ = './lora.py'
optim_wrapper = dict(type='e3va.PearOptimWrapper')
default_hooks = dict(pear=dict(type='e3va.PearHook', warmup=0.1, ratio=0.5))
