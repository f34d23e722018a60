"""What hooks share: the length of an epoch."""
from types import SimpleNamespace

import pytest
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader

from e3va.train.change import epoch_length


@pytest.mark.parametrize('kind,world,length', [
    (InfiniteSampler, 1, 5), (InfiniteSampler, 2, 3), (InfiniteSampler, 8, 1), (DefaultSampler, 1, 5),
    (DefaultSampler, 2, 3), (DefaultSampler, 8, 1)])
def test_epoch_length(monkeypatch, kind, world, length):
    """Ten images in twos: five iterations of one process, three of two; alone or in a batch sampler."""
    monkeypatch.setattr('e3va.train.change.get_world_size', lambda: world)
    monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (0, world))
    sampler = kind(range(10))
    for loader in (DataLoader(range(10), batch_size=2, sampler=sampler),
                   DataLoader(range(10), batch_sampler=BatchSampler(sampler, 2, drop_last=False))):
        assert epoch_length(SimpleNamespace(train_dataloader=loader)) == length
