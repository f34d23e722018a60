# Pear-AdaptFormer of Tables I and III (Pear (Zhong and Zhou, arXiv:2409.19733)) with the knowledge checkpoint
# SBA: each pruned unit is averaged, half and half, with the one that takes its place (equation 3).
_base_ = './pear_bi_adaptformer.py'
default_hooks = dict(pear=dict(checkpoint='sba'))
