# AdaptFormer of E3VA's tables, "in parallel to MSA/MLP": the printed 3.11 M (Swin-B) and 4.66 M (Swin-L) are two
# bottlenecks of rank 64 a block, 3,107,328 and 4,659,456 parameters.
method = dict(type='AdaptFormer', rank=64, scale=0.1, dropout=0.1, branches=('attn', 'mlp'))
