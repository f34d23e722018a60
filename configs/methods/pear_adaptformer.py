# Pear (Zhong and Zhou, arXiv:2409.19733) on AdaptFormer: after a tenth of the run the half of the bottlenecks that
# contributes least is pruned, and the best ones serve in its place. Not quantised, rank 8 without biases, as in Fig. 3
# (where no rank is given). ViT-B: 147,456 parameters in the warm-up, then 73,728.
# The paper has 10 epochs of 100; `warmup=10` counts epochs.
_base_ = './adaptformer_8.py'
method = dict(bias=False)
optim_wrapper = dict(type='e3va.PearOptimWrapper')
default_hooks = dict(pear=dict(type='e3va.PearHook', warmup=0.1, ratio=0.5))
