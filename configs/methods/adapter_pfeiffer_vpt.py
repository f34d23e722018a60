# The adapter row of VPT's code (KMnP/vpt) and of the tables that took it over (GPS: 55.8 on VTAB): with both matrices
# zero no gradient reaches them, and all that ever learns is one bias a block. For comparison with that row only.
# There the bottleneck is the width divided by a reduction factor, by default 8 (96 on ViT-B).
method = dict(type='AdapterPfeiffer', rank=96, activation='gelu', init='vpt_zero')
