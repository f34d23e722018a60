# E3VAMix (ours): LoRA, the gradient of a quarter of each batch's images.   --method e3va_mix
method = dict(type='E3VAMix', rank=8)
