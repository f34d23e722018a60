# Bi-LoRA (Jie et al., ICCV 2023, arXiv:2307.16867): LoRA of rank 32 on q and v, its factors in 1 bit an entry.
#
# ViT-B: 147,840 bytes (printed by Pear: 0.14 MB), merged exactly after training. AdamW 1e-3, weight decay 1e-4, 100
# epochs, 10 of them warm-up. s = alpha / 32 is the authors' choice for each task, of 0.01, 0.1, 1 and 10: bi_lora.yml
# has them for VTAB-1k. Other codebooks: --cfg-options model.backbone.method.bits=2 (or 4).
# The paper's "Bi-Head", a classifier in 1 bit without bias, is an option of the task: --cfg-options
# model.head.type=e3va.QuantisedHead model.head.head=VisionTransformerClsHead
method = dict(type='LoRA', rank=32, alpha=32, bits=1, dropout=0.1)
