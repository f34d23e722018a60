# Compacter (Karimi Mahabadi et al., NeurIPS 2021, arXiv:2106.04647): adapters of Kronecker products with shared A_i.
# Pear's row, 0.15 MiB: rank 48, n = 4, no bias (ViT-B: 39,168 parameters beside the 64 of the shared A_i).
method = dict(type='Compacter', rank=48, n=4, bias=False)
