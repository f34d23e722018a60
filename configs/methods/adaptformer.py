# AdaptFormer (Chen et al., NeurIPS 2022, arXiv:2205.13535): a bottleneck beside the MLP of each block; the paper's
# AdaptFormer-64 (ViT-B: 1,189,632 parameters).
method = dict(type='AdaptFormer', rank=64, scale=0.1, dropout=0.1)
