# Pear-LoRA of Table I (Pear (Zhong and Zhou, arXiv:2409.19733)): Bi-LoRA, rank 32 in 1 bit, and after ten
# epochs 12 of 24 pairs are left, which serve all positions. ViT-B: 73,920 bytes (printed: 0.07 MB).
# A task's result is the best of this, _da and _sba on the 200 validation images, see ../pear/README.md.
_base_ = './bi_lora.py'
optim_wrapper = dict(type='e3va.PearOptimWrapper')
default_hooks = dict(pear=dict(type='e3va.PearHook', warmup=0.1, ratio=0.5))
