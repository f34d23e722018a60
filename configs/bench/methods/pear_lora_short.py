# pear_lora with the warm-up of a run of four epochs: half is pruned behind the first.
#
# python tools/sweep.py configs/bench/digits.py --methods configs/bench/methods/pear_lora_short.py --tune
_base_ = '../../methods/pear_lora.py'

default_hooks = dict(pear=dict(warmup=1))
