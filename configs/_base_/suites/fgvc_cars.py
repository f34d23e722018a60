# FGVC: Stanford Cars, 196 classes, 8,144 training and 8,041 test images. The model is named by a task file.
#
# Source: fgvc.py. Data: ../tasks/README.md.
_base_ = './fgvc.py'

task = 'cars'
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
