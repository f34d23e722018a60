# Adapter (Houlsby et al., ICML 2019, arXiv:1902.00751): a bottleneck behind attention and one behind MLP of each block.
# As NOAH and the tables on VTAB have it: rank 8, QuickGELU, xavier. The 0.16 M that DMLoRA prints is the one behind the
# MLP alone (roles=('fc2',); ViT-B: 156,768 parameters, both: 313,536).
method = dict(type='Adapter', rank=8, activation='quick_gelu', init='xavier', roles=('proj', 'fc2'))
