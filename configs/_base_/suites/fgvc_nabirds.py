# FGVC: NABirds, 555 classes, 23,929 training and 24,633 test images. The model is named by a task file.
#
# Source: fgvc.py. Data: ../tasks/README.md.
_base_ = './fgvc.py'

task = 'nabirds'
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
