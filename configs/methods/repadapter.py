# RepAdapter (Luo et al., 2023, arXiv:2302.08106): linear adapters in front of attention and MLP, merged exactly after
# training (ViT-B: 221,184 weights, the paper's 0.22 M, and 18,624 biases). AdamW 1e-3, weight decay 1e-4, 100 epochs;
# `scale` is searched among 0.1, 0.5, 1, 5 and 10 for each task.
method = dict(type='RepAdapter', rank=8, scale=1.)
