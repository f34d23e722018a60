"""Entries of any module: against the dense gradient, under AdamW with decay, merged."""
import copy

import pytest
import torch
from torch import nn

from e3va.layers.entries import give_entries, put_entries_in


@pytest.mark.parametrize('module, x', [
    (nn.LayerNorm(6), torch.randn(4, 6)), (nn.Linear(6, 5), torch.randn(4, 6)),
    (nn.Conv2d(2, 3, 3), torch.randn(2, 2, 5, 5))])
def test_only_these_move(module, x):
    """Their gradient is the dense one's there; a step with decay is that of these entries; merged it is the same."""
    dense, trunk = copy.deepcopy(module), nn.ModuleDict(dict(inner=copy.deepcopy(module).requires_grad_(False)))
    tuned = trunk.inner
    give_entries(tuned, ['weight', 'bias'])
    places = torch.tensor([1, 4])
    tuned.entries.select(tuned, 'weight', places)
    tuned.entries.select(tuned, 'bias', torch.tensor([], dtype=torch.long))
    assert [name for name, parameter in tuned.named_parameters() if parameter.requires_grad] == ['entries.weight']
    weight = torch.randn(dense(x).shape)
    for model in (dense, tuned):
        (model(x) * weight).sum().backward()
    torch.testing.assert_close(tuned.entries.weight.grad, dense.weight.grad.flatten()[places])
    before = dense.weight.detach().clone()
    torch.optim.AdamW([dense.weight], lr=0.1, weight_decay=0.1).step()
    torch.optim.AdamW(tuned.entries.parameters(), lr=0.1, weight_decay=0.1).step()
    want = before.flatten()
    want[places] = dense.weight.detach().flatten()[places]
    dense.weight.data = want.view_as(dense.weight)
    torch.testing.assert_close(tuned(x), dense(x))
    copied = copy.deepcopy(trunk)
    put_entries_in(copied)
    assert set(copied.inner.state_dict()) == set(module.state_dict()) and 'forward' not in vars(copied.inner)
    torch.testing.assert_close(copied.inner(x), dense(x))
    assert torch.equal(tuned.weight, module.weight)
