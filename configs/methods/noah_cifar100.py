# The subnet that NOAH (Zhang et al., TPAMI 2024, arXiv:2206.04673) found for CIFAR-100 of VTAB-1k, as its code has it.
# ViT-B: 320,330 parameters; its code trains a subnet for 100 epochs.
method = dict(type='NOAH', subnet=dict(
    prompt=[10, 5, 10, 1, 5, 1, 10, 1, 10, 5, 1, 10],
    lora=[10, 1, 5, 5, 1, 10, 1, 1, 1, 10, 1, 1],
    adapter=[5, 10, 10, 10, 5, 1, 1, 1, 10, 10, 10, 1]))
