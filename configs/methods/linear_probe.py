# Linear probing with cached features: fixed.py where nothing is augmented. The trunk runs once for each training image,
# before the first step, and its features are kept in memory; every epoch after that trains neck and head on them alone.
# A training pipeline that draws at random (flips, crops, Mixup) is refused by the name of what draws.
method = dict(type='Fixed', cache=True)
default_hooks = dict(cache=dict(type='e3va.CacheHook'))
