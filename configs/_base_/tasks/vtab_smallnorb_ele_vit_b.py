# python tools/train.py configs/_base_/tasks/vtab_smallnorb_ele_vit_b.py --method lora
#
# VTAB-1k, structured: SmallNORB/elevation, 9 classes, 1,000 training and 12,150 test images; names no method.
# Expect: not measured by us. Source: ../suites/vtab.py. Data: README.md here.
_base_ = '../suites/vtab.py'

task = 'smallnorb_ele'
model = dict(head=dict(num_classes=9))
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
