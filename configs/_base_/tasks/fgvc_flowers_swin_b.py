# python tools/train.py configs/_base_/tasks/fgvc_flowers_swin_b.py --method lora
#
# FGVC: Oxford Flowers-102, 102 classes, 2,040 training and 6,149 test images, Swin-B; names no method.
# Expect: not measured by us. Source: ../suites/fgvc.py. Data: README.md here.
_base_ = ['../models/swin_b.py', '../suites/fgvc_flowers.py']

model = dict(head=dict(num_classes=102))
data_preprocessor = dict(num_classes=102)
