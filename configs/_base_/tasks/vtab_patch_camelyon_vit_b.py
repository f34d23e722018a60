# python tools/train.py configs/_base_/tasks/vtab_patch_camelyon_vit_b.py --method lora
#
# VTAB-1k, specialized: Patch Camelyon, 2 classes, 1,000 training and 32,768 test images; names no method.
# Expect: not measured by us. Source: ../suites/vtab.py. Data: README.md here.
_base_ = '../suites/vtab.py'

task = 'patch_camelyon'
model = dict(head=dict(num_classes=2))
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
