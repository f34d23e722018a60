# MoRA (Jiang et al., 2024, arXiv:2405.12130): squares in place of LoRA's pairs, on q and v, merged exactly after
# training. As many parameters as LoRA of rank 8 (ViT-B: 290,400; Pear counts size=112: 301,056).
method = dict(type='MoRA', rank=8)
