# LoRA (Hu et al., ICLR 2022, arXiv:2106.09685): low-rank additions to q and v, merged exactly after training.
# Rank 8 with a scale of 1 on q and v is the row of the Pear, GPS and DMLoRA papers (ViT-B: 294,912 parameters).
method = dict(type='LoRA', rank=8, alpha=8)
