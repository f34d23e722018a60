"""E2VPT (Han et al., ICCV 2023): prompts among the tokens and among the keys and values, pruned, then trained again.

Where the paper's sentences are:

    3.2  input prompts                                      methods.vpt.Prompts; method.SegmentedPrompts
         key-value prompts in every layer                   method.KeyValues, further_tokens, further_windows
    3.3  importance of a token, of a segment                method.contributions, importance
         token-wise, then segment-wise pruning              method.survivors, prune
         rewinding: what is left trains from its start      hook.E2VPTHook
"""
