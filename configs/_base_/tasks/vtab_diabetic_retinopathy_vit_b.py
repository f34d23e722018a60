# python tools/train.py configs/_base_/tasks/vtab_diabetic_retinopathy_vit_b.py --method lora
#
# VTAB-1k, specialized: Diabetic Retinopathy, 5 classes, 1,000 training and 42,670 test images; names no method.
# Expect: not measured by us. Source: ../suites/vtab.py. Data: README.md here.
_base_ = '../suites/vtab.py'

task = 'diabetic_retinopathy'
model = dict(head=dict(num_classes=5))
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
