"""SPT (He et al., ICCV 2023): where a budget of parameters is spent is decided by the sensitivity of the weights.

Where the paper's sentences are:

    3.1  sensitivity of a parameter, its squared gradient   method.SPT.squared; summed in gps.gradients.select
         its sum over batches of training data, one shot    hook.SPTHook
    3.2  top-tau parameters, unstructured tuning            method.allot; layers.sparse, layers.entries
         structured where a matrix has many of them         method.allot; method.AllottedLinear
         LoRA or adapters, SPT-LoRA and SPT-Adapter         method.SPT, `module`
         the budget                                         method.allot; of public code: tau in steps
    a norm or bias with a fifth selected is tuned whole     method.SPT.parts (public code)
"""
