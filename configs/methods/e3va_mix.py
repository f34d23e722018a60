# E3VAMix (ours): LoRA, the gradient of a quarter of each batch's images.   --method e3va_mix
method = dict(type='E3VAMix', rank=8)
# fewer images, noisier gradients, smaller steps of Adam: twice the rate makes up for it (configs/e3va/README.md)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'pairs': dict(lr_mult=2.)}))
