# FourierFT from zero: its published start, normal coefficients times 150, is far from the backbone.
_base_ = '../../methods/fourierft.py'
method = dict(init='zero')
