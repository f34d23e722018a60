# Adapter of the tables of E3VA and Mona: rank 64, GELU, dropout 0.1, filled like the trunk's linears (normal of 0.02).
# 3,107,328 parameters on Swin-B (printed: 3.11 M), 4,659,456 on Swin-L (4.66 M).
method = dict(type='Adapter', rank=64, activation='gelu', dropout=0.1, init='trunc_normal')
