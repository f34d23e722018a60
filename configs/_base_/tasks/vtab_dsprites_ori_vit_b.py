# python tools/train.py configs/_base_/tasks/vtab_dsprites_ori_vit_b.py --method lora
#
# VTAB-1k, structured: dSprites/orientation, 16 classes, 1,000 training and 73,728 test images; names no method.
# Expect: not measured by us. Source: ../suites/vtab.py. Data: README.md here.
_base_ = '../suites/vtab.py'

task = 'dsprites_ori'
model = dict(head=dict(num_classes=16))
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
