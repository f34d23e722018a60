# FacT-TK (Jie and Deng, AAAI 2023, arXiv:2212.03145): a Tucker decomposition of the changes of all weights, merged
# exactly after training (ViT-B: 86,528 parameters). AdamW 1e-3, weight decay 1e-4, 100 epochs; `rank` is searched up to
# 32 and `scale` among 0.01, 0.1, 1, 10 and 100 for each task.
method = dict(type='FacT', variant='tk', rank=32, scale=1.)
