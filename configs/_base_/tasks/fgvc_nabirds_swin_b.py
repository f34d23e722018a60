# python tools/train.py configs/_base_/tasks/fgvc_nabirds_swin_b.py --method lora
#
# FGVC: NABirds, 555 classes, 23,929 training and 24,633 test images, Swin-B; names no method.
# Expect: not measured by us. Source: ../suites/fgvc.py. Data: README.md here.
_base_ = ['../models/swin_b.py', '../suites/fgvc_nabirds.py']

model = dict(head=dict(num_classes=555))
data_preprocessor = dict(num_classes=555)
