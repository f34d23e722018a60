"""NOAH (Zhang et al., TPAMI 2024): a supernet of prompts, LoRAs and adapters, and a search for its best subnet.

Where the paper's sentences are:

    3.2  the three in every block, sizes by block           method.NOAH, SizedPrompts, SizedLoRA, SizedAdapter
         sizes and depths to search among                   method.Space
    3.3  supernet training, a subnet drawn at each step     method.drawn, set_sizes; hook.NOAHHook
         evolutionary search under a budget                 search.search, mutated, crossed; tools/search.py
         retraining                                         method.NOAH, `subnet`
"""
