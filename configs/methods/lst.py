# LST (Sung et al., NeurIPS 2022, arXiv:2206.06522): a side network of the trunk's depth and an eighth of its width
# reads each block's output; nothing is backpropagated through the trunk. ViT-B: 2,376,492 parameters, as V-PETL-Bench
# prints (2.38 M). Its side blocks start as the trunk's, pruned. For trunks of stages see e3va/highway/lst.py. The
# paper's rate is 3e-3 (language models).
method = dict(type='LST', reduction=8)
