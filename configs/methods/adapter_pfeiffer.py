# Adapter-P (Pfeiffer et al., EACL 2021, arXiv:2005.00247): a bottleneck behind the MLP of each block.
# Rank 8 without bias is Pear's row (ViT-B: 147,456 parameters, 0.56 MiB); `lora_xavier` starts at the trunk.
method = dict(type='AdapterPfeiffer', rank=8, init='lora_xavier', bias=False)
