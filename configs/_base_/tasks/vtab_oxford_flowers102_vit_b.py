# python tools/train.py configs/_base_/tasks/vtab_oxford_flowers102_vit_b.py --method lora
#
# VTAB-1k, natural: Oxford Flowers, 102 classes, 1,000 training and 6,149 test images; names no method.
# Expect: not measured by us. Source: ../suites/vtab.py. Data: README.md here.
_base_ = '../suites/vtab.py'

task = 'oxford_flowers102'
model = dict(head=dict(num_classes=102))
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
