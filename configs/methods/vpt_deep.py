# VPT-deep (Jia et al., ECCV 2022, arXiv:2203.12119): 50 trained tokens among those of every block, dropout 0.1.
# ViT-B: 460,800 parameters. 50 is the authors' example; the tables of all papers choose the number per task, and the
# GPS paper's Fig. 4 takes 50.
method = dict(type='VPT', tokens=50, deep=True, dropout=0.1)
