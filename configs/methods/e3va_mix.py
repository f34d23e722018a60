# E3VAMix (ours): LoRA of q, v, proj and fc2, the gradient of a quarter of each batch's images.   --method e3va_mix
method = dict(type='E3VAMix', rank=8)
