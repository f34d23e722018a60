# LoRand (Yin et al., CVPR 2023): adapters of two low-rank branches with kernels of 8, half the width inside, as in
# E3VA's tables. 1,203,456 parameters on Swin-B (printed: 1.20 M), 1,799,040 on Swin-L (printed: 1.31 M).
method = dict(type='LoRand', branches=2, rank=8)
