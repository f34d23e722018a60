# E2VPT (Han et al., ICCV 2023, arXiv:2307.13770): trained tokens among those of every block, as in VPT-deep, and rows
# beside its attention's keys and values. After the config's epochs the least important tokens, and segments of the
# others, are cut, and what is left trains from its start for as long again: the run is twice as long.
# ViT-B: 92,160 parameters, 59,904 once half of the tokens and segments are cut. The paper chooses the numbers of both
# prompts and what is cut (10 % to 90 % of each) per task; here the defaults of its code, and half.
method = dict(type='E2VPT', tokens=5, key_values=5)
default_hooks = dict(e2vpt=dict(type='e3va.E2VPTHook', tokens=0.5, segments=0.5))
