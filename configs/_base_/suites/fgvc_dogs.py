# FGVC: Stanford Dogs, 120 classes, 12,000 training and 8,580 test images. The model is named by a task file.
#
# Source: fgvc.py. Data: ../tasks/README.md.
_base_ = './fgvc.py'

task = 'dogs'
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
