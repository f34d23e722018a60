# E3VA (Yin et al., ACM MM 2024, doi:10.1145/3664647.3680940): low-rank adapters on a highway beside the frozen trunk.
# Rank 8 is the paper's "E3VA" (section 4.1): 1,195,008 trained parameters in Swin-B, 1,792,512 in Swin-L.
method = dict(type='E3VA', rank=8)
