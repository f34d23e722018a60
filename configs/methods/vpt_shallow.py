# VPT-shallow (Jia et al., ECCV 2022, arXiv:2203.12119): 50 trained tokens among those of the first block.
# ViT-B: 38,400 parameters. 50 is the authors' example; the tables of all papers choose the number per task, and the
# GPS paper's Fig. 4 takes 200.
method = dict(type='VPT', tokens=50, deep=False)
