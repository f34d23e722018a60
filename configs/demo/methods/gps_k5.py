# GPS with five entries of each neuron.
_base_ = '../../methods/gps.py'
method = dict(k=5)
