# python tools/train.py configs/_base_/tasks/vtab_resisc45_vit_b.py --method lora
#
# VTAB-1k, specialized: Resisc45, 45 classes, 1,000 training and 6,300 test images; names no method.
# Expect: not measured by us. Source: ../suites/vtab.py. Data: README.md here.
_base_ = '../suites/vtab.py'

task = 'resisc45'
model = dict(head=dict(num_classes=45))
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
