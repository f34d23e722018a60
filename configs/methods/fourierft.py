# FourierFT (Gao et al., ICML 2024, arXiv:2405.03003) on q and v, as the paper has it on ViT-B (72,000 parameters),
# merged exactly after training. It starts with a random change of the weights; on narrow layers (Swin's first stages)
# take init='zero'.
method = dict(type='FourierFT', n=3000, scale=300., init='normal')
