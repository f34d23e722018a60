# python tools/train.py configs/_base_/tasks/vtab_kitti_vit_b.py --method lora
#
# VTAB-1k, structured: KITTI/distance, 4 classes, 1,000 training and 711 test images; names no method.
# Expect: not measured by us. Source: ../suites/vtab.py. Data: README.md here.
_base_ = '../suites/vtab.py'

task = 'kitti'
model = dict(head=dict(num_classes=4))
train_dataloader = dict(dataset=dict(task=task))
val_dataloader = dict(dataset=dict(task=task))
test_dataloader = dict(dataset=dict(task=task))
