# python tools/train.py configs/_base_/tasks/cifar100_swin_b_100e.py --method lora    (or full, fixed, e3va, a file)
#
# The task: classification on CIFAR-100 shown at 224x224, Swin-B, 100 epochs. Names no method.
# Expect: not measured by us. Source: ../suites/cifar100.py. Data: README.md here. cifar100_swin_b.py is
# the task of the E3VA configs, with 30 epochs and less augmentation.
_base_ = ['../models/swin_b.py', '../suites/cifar100.py']

model = dict(head=dict(num_classes=100))
data_preprocessor = dict(num_classes=100, to_rgb=False)
