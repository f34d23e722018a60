# python tools/train.py configs/_base_/tasks/vtab_cifar_vit_b.py --method lora
#
# VTAB-1k, natural: CIFAR-100, 100 classes, 1,000 training and 10,000 test images; names no method.
# Expect: not measured by us. Source: ../suites/vtab.py. Data: README.md here.
_base_ = '../suites/vtab.py'

task = 'cifar'
model = dict(head=dict(num_classes=100))
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
