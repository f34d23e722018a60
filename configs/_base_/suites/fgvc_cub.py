# FGVC: CUB-200-2011, 200 classes, 5,994 training and 5,794 test images. The model is named by a task file.
#
# Source: fgvc.py. Data: ../tasks/README.md.
_base_ = './fgvc.py'

task = 'cub'
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
