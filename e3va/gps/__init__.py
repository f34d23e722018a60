"""GPS (Zhang et al., CVPR 2024): the entries of each neuron with the largest gradients are selected; they alone train.

Where the paper's sentences are:

    3.1, Eq. 1  gradients of all weights, over all data     gradients.select
         Eq. 2  the supervised contrastive loss             contrast.supcon; of what features: features_of
         top-K  connections of each neuron, by |gradient|   method.GPS.choose (level, criterion: the ablations)
    3.2, Eq. 5  the selected parameters w, a mask M         layers.sparse: values of their own; index is M
         Eq. 6  W - eps grad * M                            layers.sparse_product; mode='mask': optim.Masks.clear
    between the loading of the weights and the first step   hook.GPSHook.before_train
    what else trains (biases; of the public code)           method.GPS.apply, `train`
    a figure of where the selected weights lie              tools/analysis_tools/plot_selection.py
"""
