# python tools/train.py configs/_base_/tasks/vtab_sun397_vit_b.py --method lora
#
# VTAB-1k, natural: SUN397, 397 classes, 1,000 training and 21,750 test images; names no method.
# Expect: not measured by us. Source: ../suites/vtab.py. Data: README.md here.
_base_ = '../suites/vtab.py'

task = 'sun397'
model = dict(head=dict(num_classes=397))
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
