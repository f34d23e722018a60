# Fixed: the trunk is frozen and runs in eval mode, only neck and heads train. The norms in front of the neck stay
# frozen too, as in the tables of the E3VA paper; `train_out_norms=True` trains them.
method = dict(type='Fixed')
