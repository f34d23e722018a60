"""CIFAR-100 files that are not the original ones."""
from mmpretrain.datasets import CIFAR100


class SyntheticCIFAR100(CIFAR100):
    """mmpretrain's CIFAR100 without its MD5 sums, which no generated file can have, and without the download.

    In a config: `type='e3va.datasets.cifar.SyntheticCIFAR100'`, all other keys as they are.
    """
    train_list = [[name, None] for name, _ in CIFAR100.train_list]
    test_list = [[name, None] for name, _ in CIFAR100.test_list]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, 'download': False})
