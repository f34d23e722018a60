# python tools/train.py configs/_base_/tasks/fgvc_dogs_vit_b.py --method lora
#
# FGVC: Stanford Dogs, 120 classes, 12,000 training and 8,580 test images, ViT-B/16; names no method.
# Expect: not measured by us. Source: ../suites/fgvc.py. Data: README.md here.
_base_ = ['../models/vit_b.py', '../suites/fgvc_dogs.py']

model = dict(head=dict(num_classes=120))
data_preprocessor = dict(num_classes=120)
