# python tools/train.py configs/_base_/tasks/fgvc_dogs_convnext_b.py --method lora
#
# FGVC: Stanford Dogs, 120 classes, 12,000 training and 8,580 test images, ConvNeXt-B; names no method.
# Expect: not measured by us. Source: ../suites/fgvc.py. Data: README.md here.
_base_ = ['../models/convnext_b.py', '../suites/fgvc_dogs.py']

model = dict(head=dict(num_classes=120))
data_preprocessor = dict(num_classes=120)
