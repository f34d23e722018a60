"""Find, swap, rebind on a small module."""
import copy
import pickle

import pytest
import torch
from torch import nn

from e3va.surgery import find, near, rebind, swap, unbind


def small():
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)))


def test_find_is_by_whole_name_and_type():
    assert list(find(small(), r'\d')) == ['0', '1', '2']
    assert list(find(small(), r'.*', nn.Linear)) == ['0', '2.0', '2.1']
    with pytest.raises(ValueError, match=r"matches the pattern '2.9'; near: 2\.[01]"):
        find(small(), '2.9', nn.Linear)


def test_swap():
    model = small()
    swap(model, r'2\.\d', lambda old: nn.Linear(old.in_features, old.out_features, bias=False))
    assert model[0].bias is not None and model[2][0].bias is None and model[2][1].bias is None


def double(module, x):
    return 2 * type(module).forward(module, x)


def test_rebind_follows_copies():
    """A copy calls the function with itself, not with the original."""
    model = small()
    x = torch.randn(4, 2)
    plain = model(x)
    rebind(model, 'forward', double)
    assert torch.equal(model(x), 2 * plain)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        nn.init.zeros_(other[2][1].weight), nn.init.zeros_(other[2][1].bias)
        assert not other(x).any() and torch.equal(model(x), 2 * plain)
    unbind(model, 'forward')
    assert torch.equal(model(x), plain)


def test_near():
    assert near('E3V', ['LoRA', 'E3VA']) == 'near: E3VA'
    assert near('zzz', ['LoRA', 'E3VA']) == 'there are: LoRA, E3VA'
