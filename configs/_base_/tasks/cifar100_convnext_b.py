# python tools/train.py configs/_base_/tasks/cifar100_convnext_b.py --method lora    (or full, fixed, e3va, a file)
#
# The task: classification on CIFAR-100 shown at 224x224, ConvNeXt-B, 100 epochs. Names no method.
# Expect: not measured by us. Source: ../suites/cifar100.py. Data: README.md here.
_base_ = ['../models/convnext_b.py', '../suites/cifar100.py']

model = dict(head=dict(num_classes=100))
data_preprocessor = dict(num_classes=100, to_rgb=False)
