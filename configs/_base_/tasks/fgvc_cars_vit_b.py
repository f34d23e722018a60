# python tools/train.py configs/_base_/tasks/fgvc_cars_vit_b.py --method lora
#
# FGVC: Stanford Cars, 196 classes, 8,144 training and 8,041 test images, ViT-B/16; names no method.
# Expect: not measured by us. Source: ../suites/fgvc.py. Data: README.md here.
_base_ = ['../models/vit_b.py', '../suites/fgvc_cars.py']

model = dict(head=dict(num_classes=196))
data_preprocessor = dict(num_classes=196)
