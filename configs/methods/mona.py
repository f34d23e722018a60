# Mona (Yin et al., CVPR 2025, arXiv:2408.08345): adapters of multi-scale convolutions behind each residual addition.
# 3,667,456 parameters on Swin-B and 5,267,712 on Swin-L; printed are 4.16 M and 5.08 M, which the authors' code does
# not give. Their learning rates: 1e-4 on COCO, 3e-4 (and drop_path_rate=0.2) on ADE20K.
method = dict(type='Mona', rank=64, dropout=0.1)
