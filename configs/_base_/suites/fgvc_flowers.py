# FGVC: Oxford Flowers-102, 102 classes, 2,040 training and 6,149 test images. The model is named by a task file.
#
# Source: fgvc.py. Data: ../tasks/README.md.
_base_ = './fgvc.py'

task = 'flowers'
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
