# python tools/train.py configs/_base_/tasks/imagenet_convnext_b.py --method lora    (or full, fixed, e3va, a file)
#
# The task: classification on ImageNet-1K, ConvNeXt-B from ImageNet-21K, 30 epochs. Names no method.
# Expect: not measured by us. Source: ../suites/imagenet.py. Data: README.md here.
_base_ = ['../models/convnext_b.py', '../suites/imagenet.py']

model = dict(backbone=dict(drop_path_rate=0.1), head=dict(num_classes=1000))
data_preprocessor = dict(num_classes=1000)
