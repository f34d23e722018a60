# SSF (Lian et al., NeurIPS 2022, arXiv:2210.08823): scale and shift behind each operation, merged exactly after
# training (ViT-B: 205,824 parameters). The authors train with AdamW at 5e-3, weight decay 5e-5 (CIFAR-100).
method = dict(type='SSF')
