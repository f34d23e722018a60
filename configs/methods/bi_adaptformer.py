# Bi-AdaptFormer (Jie et al., ICCV 2023, arXiv:2307.16867): AdaptFormer of rank 32 without biases, in 1 bit an entry.
#
# ViT-B: 73,920 bytes (printed by Pear: 0.071 MB). AdamW 1e-3, weight decay 1e-4, 100 epochs, 10 of them warm-up. s is
# the authors' choice for each task, of 0.01, 0.1, 1 and 10: bi_adaptformer.yml has them for VTAB-1k. Other codebooks:
# --cfg-options model.backbone.method.bits=2 (or 4).
# The paper's "Bi-Head", a classifier in 1 bit without bias, is an option of the task: --cfg-options
# model.head.type=e3va.QuantisedHead model.head.head=VisionTransformerClsHead
method = dict(type='AdaptFormer', rank=32, scale=1., dropout=0.1, bits=1)
