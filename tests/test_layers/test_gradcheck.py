"""Custom functions against finite differences in double; the highway's and `Again` are in test_highway/test_modes.py.
"""
import pytest
import torch
from torch.autograd import gradcheck

from e3va.layers.sparse_product import Put, SparseProduct
from e3va.methods.ssf import Scaled
from e3va.trunks.sampled import Still


def random(*shape):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


INDEX = torch.tensor([[0, 3], [5, 6], [8, 11]], dtype=torch.int32)       # of a weight (3, 4)


def test_put():
    weight = random(3, 4).detach()
    assert gradcheck(lambda values: Put.apply(weight, INDEX, values), (random(3, 2), ))


@pytest.mark.parametrize('columns', [None, torch.tensor([0, 1, 2, 3])])
def test_sparse_linear(columns):
    weight = random(3, 4).detach()
    assert gradcheck(lambda x, values, bias: SparseProduct.apply(x, weight, INDEX, values, bias, columns),
                     (random(5, 4), random(3, 2), random(3)))


def test_sparse_linear_on_some_columns():
    """Columns that hold no entry are not kept, and the gradient of the input is whole."""
    weight, index = random(3, 4).detach(), torch.tensor([[1, 3], [5, 7], [9, 11]], dtype=torch.int32)
    assert gradcheck(lambda x, values: SparseProduct.apply(x, weight, index, values, None, torch.tensor([1, 3])),
                     (random(5, 4), random(3, 2)))


@pytest.mark.parametrize('groups', [1, 2])
def test_sparse_convolution(groups):
    weight, index = random(4, 2, 3, 3).detach(), torch.tensor([0, 17, 20, 35, 40, 70], dtype=torch.int32)
    assert gradcheck(lambda x, values, bias: SparseProduct.apply(x, weight, index, values, bias, None, (1, 2), (1, 0),
                                                                 (1, 1), groups),
                     (random(1, 2 * groups, 5, 6), random(6), random(4)))


def test_scaled():
    assert gradcheck(Scaled.apply, (random(2, 5, 3), random(3), random(3)))


def test_still():
    """The parameters have a gradient, and it is zero; that of x passes."""
    x, parameter = random(2, 3), random(4)
    (Still.apply(x, parameter) ** 2).sum().backward()
    assert torch.equal(parameter.grad, torch.zeros(4, dtype=torch.double)) and torch.equal(x.grad, 2 * x)
