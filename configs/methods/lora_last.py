# LoRA in the last block alone, the null row beside LoRA: what of its gain needs no backpropagation through the trunk.
# `blocks` is how many; rank and scale are those of lora.py (ViT-B, 1 block: 24,576 parameters).
method = dict(type='LoRA', rank=8, alpha=8, blocks=1)
