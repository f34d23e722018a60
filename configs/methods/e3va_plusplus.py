# E3VA (Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940): low-rank adapters on a highway beside the frozen trunk.
# Rank 32 is the paper's "E3VA++" (section 4.1): 4,660,224 trained parameters in Swin-B, 6,990,336 in Swin-L.
method = dict(type='E3VA', rank=32)
