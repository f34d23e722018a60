# python tools/train.py configs/_base_/tasks/vtab_dmlab_vit_b.py --method lora
#
# VTAB-1k, structured: DMLab, 6 classes, 1,000 training and 22,735 test images; names no method.
# Expect: not measured by us. Source: ../suites/vtab.py. Data: README.md here.
_base_ = '../suites/vtab.py'

task = 'dmlab'
model = dict(head=dict(num_classes=6))
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
