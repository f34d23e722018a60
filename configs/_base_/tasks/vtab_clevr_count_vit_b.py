# python tools/train.py configs/_base_/tasks/vtab_clevr_count_vit_b.py --method lora
#
# VTAB-1k, structured: Clevr/count, 8 classes, 1,000 training and 15,000 test images; names no method.
# Expect: not measured by us. Source: ../suites/vtab.py. Data: README.md here.
_base_ = '../suites/vtab.py'

task = 'clevr_count'
model = dict(head=dict(num_classes=8))
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
