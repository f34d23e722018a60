# AdaptFormer of the tables on VTAB (DMLoRA, Pear): rank 8, scale 0.1. ViT-B: 156,768 parameters (printed: 0.16 M),
# with bias=False 147,456 (Pear: 0.56 MiB).
method = dict(type='AdaptFormer', rank=8, scale=0.1, dropout=0.1)
