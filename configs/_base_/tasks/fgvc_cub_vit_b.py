# python tools/train.py configs/_base_/tasks/fgvc_cub_vit_b.py --method lora
#
# FGVC: CUB-200-2011, 200 classes, 5,994 training and 5,794 test images, ViT-B/16; names no method.
# Expect: not measured by us. Source: ../suites/fgvc.py. Data: README.md here.
_base_ = ['../models/vit_b.py', '../suites/fgvc_cub.py']

model = dict(head=dict(num_classes=200))
data_preprocessor = dict(num_classes=200)
