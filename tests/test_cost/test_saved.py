"""Saved activations against counts by hand, from what each function's backward needs."""
import torch
from torch import nn

from e3va.cost.saved import saved_bytes

FLOAT = 4


def test_counts_inputs_of_linear_and_gelu():
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    x = torch.randn(2, 5)
    # the linear layers keep their inputs (2, 5) and (2, 7), GELU keeps its own (2, 7)
    assert saved_bytes(lambda: model(x), model) == FLOAT * (2 * 5 + 2 * 7 + 2 * 7)


def test_frozen_weights_save_no_inputs():
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    model[0].requires_grad_(False)
    x = torch.randn(2, 5)
    assert saved_bytes(lambda: model(x), model) == FLOAT * 2 * 7
    with torch.no_grad():
        assert saved_bytes(lambda: model(x), model) == 0


def test_one_storage_counts_once():
    x = torch.randn(4, 6, requires_grad=True)
    # both products keep x and views of x: one storage
    assert saved_bytes(lambda: (x * x.t().t(), x[:2] * x[2:]), nn.Module()) == FLOAT * 4 * 6


def test_parameters_and_buffers_are_not_activations():
    model = nn.BatchNorm1d(3).eval()
    x = torch.randn(8, 3, requires_grad=True)
    # eval-mode batch norm keeps its input; weight, running mean and variance belong to the module
    assert saved_bytes(lambda: model(x), model) == FLOAT * 8 * 3


def test_sees_what_a_custom_function_saves():
    class Double(torch.autograd.Function):

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x, x.half())
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    x = torch.randn(10, requires_grad=True)
    assert saved_bytes(lambda: Double.apply(x), nn.Module()) == FLOAT * 10 + 2 * 10


def test_what_is_dropped_on_the_way_is_not_kept():
    x, weight = torch.randn(5, 5), torch.randn(5, 5, requires_grad=True)

    def forward():
        costs = (x @ weight).exp()                              # both keep something, until `costs` goes
        return (weight * costs.detach().sum()).sum()            # keeps the sum, one number

    assert saved_bytes(forward, nn.ParameterList([weight])) == FLOAT
    assert saved_bytes(lambda: (x @ weight).exp(), nn.ParameterList([weight])) == FLOAT * 2 * 25
