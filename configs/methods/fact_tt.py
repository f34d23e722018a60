# FacT-TT (Jie and Deng, AAAI 2023, arXiv:2212.03145): a tensor train of the changes of all weights, merged exactly
# after training (ViT-B: 61,440 parameters). AdamW 1e-3, weight decay 1e-4, 100 epochs; `rank` is searched among 8, 16
# and 32 (Pear's row) and `scale` among 0.01, 0.1, 1, 10 and 100 for each task.
method = dict(type='FacT', variant='tt', rank=16, scale=1.)
