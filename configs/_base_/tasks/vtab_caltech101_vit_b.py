# python tools/train.py configs/_base_/tasks/vtab_caltech101_vit_b.py --method lora
#
# VTAB-1k, natural: Caltech101, 102 classes, 1,000 training and 6,084 test images; names no method.
# Expect: not measured by us. Source: ../suites/vtab.py. Data: README.md here.
_base_ = '../suites/vtab.py'

task = 'caltech101'
model = dict(head=dict(num_classes=102))
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
