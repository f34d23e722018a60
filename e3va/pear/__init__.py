"""Pear (Zhong and Zhou, arXiv 2409.19733): prune the adapters that contribute least, the best serve in their places.

Where the paper's sentences are:

    II-A1  identifying redundant adapters: the criteria     plan.CRITERIA, plan.score
           weights and gradients of the warm-up             optim.MomentsMixin, read in its last epoch
    II-A2  m = n x ratio of the lowest contribution are pruned,
           the m best are shared with their positions       plan.plan; carried out: plan.prune
           a position served by another's adapter           methods.routing, layers.emptied
    II-B   knowledge checkpoint: Eq. 2 (DA), Eq. 3 (SBA)    plan.prune, `checkpoint` and `coefficients`
    10 warm-up epochs, then pruning                         hook.PearHook.before_train_iter
    vanilla pruning, the ablation                           hook.VanillaPruning
    quantised adapters (Bi-LoRA, Bi-AdaptFormer)            layers.quantised
    the figure of who serves whom                           picture.draw, tools/analysis_tools/plot_pear.py
"""
