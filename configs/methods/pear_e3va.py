# Pear (Zhong and Zhou, arXiv:2409.19733) on E3VA, which no paper has: in each stage of the highway the half of the
# adapters that contributes least is pruned, and the best ones of the stage serve in its place. Rank 8; Swin-L:
# 1,792,512 parameters in the warm-up, a tenth of the run.
_base_ = './e3va.py'
optim_wrapper = dict(type='e3va.PearOptimWrapper')
default_hooks = dict(pear=dict(type='e3va.PearHook', warmup=0.1, ratio=0.5, scope='group'))
