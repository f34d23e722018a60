"""AdaMix (Wang et al., EMNLP 2022): a mixture of adapters or LoRAs, routed at random, averaged afterwards.

Where the paper's sentences are:

    3.1  stochastic routing, one of M modules a step        dmlora.method.Branches, draw; hook.AdaMixHook
         a down and an up projection drawn by themselves    method.MixAdapter; LoRA: dmlora.method.MixLoRALinear
         consistency of two passes, symmetric KL            hook.consistent, method.divergence
    3.2  merging: the average of the modules' weights       Branches.mean; dmlora.method.average
    3.3  sharing of a projection                            method.AdaMix, `share`
"""
