# Pear-AdaptFormer of Table I (Pear (Zhong and Zhou, arXiv:2409.19733)): Bi-AdaptFormer, rank 32 in 1 bit, and after ten
# epochs 6 of 12 bottlenecks are left, which serve all positions. ViT-B: 36,960 bytes (printed: 0.035 MB).
# A task's result is the best of this, _da and _sba on the 200 validation images, see ../pear/README.md.
_base_ = './bi_adaptformer.py'
optim_wrapper = dict(type='e3va.PearOptimWrapper')
default_hooks = dict(pear=dict(type='e3va.PearHook', warmup=0.1, ratio=0.5))
