# Norm-Tuning, a baseline of E3VA's tables: only the trunk's norm layers train (Swin-B 59,392 parameters, Swin-L
# 89,088).
method = dict(type='NormTuning')
