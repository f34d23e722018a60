# SAM-Adapter (Chen et al., 2023, arXiv:2304.09148), which is EVP (Liu et al., CVPR 2023, arXiv:2303.10883) on a plain
# ViT: tokens of the patch embeddings and of the image's high frequencies, added in front of each block.
# SAM's ViT-B: 63,312 parameters (GPS, Table 5: 4.12 M with the mask decoder's 4.06 M). AdamW 2e-4 there, 20 epochs.
method = dict(type='EVP', reduction=32, frequencies=0.25)
