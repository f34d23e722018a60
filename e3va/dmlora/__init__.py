"""DMLoRA (Fang et al., ECCV 2024): LoRA branches drawn at random and halved as training goes on, then learned scales.

Where the paper's sentences are:

    3.2, Eq. 2  MixLoRA, W + s RR(B) RR(A)                  method.MixLoRALinear; of convolutions MixLoRAConv2d
                n branches A_i, B_i of a factor             method.Branches
                RR: randomly selected during training       method.draw, each step by DMLoRAHook.before_train_iter
                Mixture Dropout: halve, drop or average     method.halve; every k epochs: DMLoRAHook.wanted
                Mixture Evaluation: mean(B) mean(A)         Branches.mean; merging: layers.delta_linear
    3.3  2-Stage Learning Scalar, freeze and learn s        DMLoRAHook.second_stage, method.average
         its optimizer and rate                             optim.BranchMixin.restart
    Table 3, schemes A to E                                 DMLoRAHook(halving=...), DMLoRA(share=...)
    a figure of the learned scales                          tools/analysis_tools/plot_scales.py
"""
