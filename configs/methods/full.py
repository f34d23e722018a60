# Full fine-tuning, the reference of every paper: each parameter of the trunk trains, as without e3va.
method = dict(type='Full')
