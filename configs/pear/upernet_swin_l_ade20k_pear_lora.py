# python tools/train.py configs/pear/upernet_swin_l_ade20k_pear_lora.py
# bash tools/dist_train.sh configs/pear/upernet_swin_l_ade20k_pear_lora.py 8
#
# Pear on LoRA (rank 8, q and v), semantic segmentation on ADE20K: UPerNet, Swin-L. Shared within a stage
# and role.
# Expect: not measured by us; the paper has no dense task.
# Source: Zhong and Zhou, arXiv:2409.19733, section 2. The warm-up is ours,
# a tenth of the run, as the paper has it.
# To edit: the task file for data, batch, rate and weights; here the method.
_base_ = '../_base_/tasks/ade20k_upernet_swin_l.py'

method = dict(type='LoRA', rank=8, alpha=8, roles=('q', 'v'))
default_hooks = dict(pear=dict(type='e3va.PearHook', warmup=16000, by_epoch=False, ratio=0.5))
optim_wrapper = dict(type='e3va.PearOptimWrapper')
model = dict(backbone=dict(type='e3va.Tuned', trunk='SwinTransformer', method=method))
