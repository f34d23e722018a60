"""Products that keep their input in 8 bits, or the sum of weights: gradients of the formula, bytes."""
import pytest
import torch
from torch.nn import functional as F

from e3va.cost.saved import saved_bytes
from e3va.layers.packed import linear_of
from e3va.layers.recompute import FORMS
from e3va.layers.summed import summed


def rounded(x):
    """As it comes out of 8 bits."""
    return FORMS['int8'].unpack(x.dtype, *FORMS['int8'].pack(x.detach()))


@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
def test_packed(kind):
    """Output and gradient of x are torch's; W's is that of the rounded x; x is kept once in a quarter."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, 50, 64).to(kind).requires_grad_(), torch.randn(8, 64, requires_grad=True)
    other, weights = torch.randn(8, 64, requires_grad=True), torch.randn(3, 50, 8)
    with torch.autocast('cpu', torch.bfloat16, enabled=kind is torch.bfloat16):
        out = linear_of(x, 'int8')(x, weight)
        want = F.linear(x, weight)
    assert torch.equal(out, want) and out.dtype == want.dtype
    of_x, of_weight = torch.autograd.grad((out * weights).sum(), (x, weight))
    torch.testing.assert_close(of_x, torch.autograd.grad((want * weights).sum(), x)[0])
    at, exact = rounded(x), weights.to(kind)
    torch.testing.assert_close(of_weight, (exact.flatten(0, 1).T @ at.flatten(0, 1)).float(), rtol=2e-2, atol=1e-3)
    weight, other = weight.to(kind), other.to(kind)
    hidden, linear = x.detach() * 1, linear_of(x, 'int8')
    kept = saved_bytes(lambda: linear(hidden, weight) + linear(hidden, other), torch.nn.Module())
    assert kept <= x.numel() + 4 * 150 + 2 * 4 * weight.numel()


@pytest.mark.parametrize('of,slices', [(1, (0,)), (3, (0, 2)), (3, (1,))])
def test_summed(of, slices):
    """torch's gradcheck in float64, the bias left out and in."""
    torch.manual_seed(0)
    draw = dict(dtype=torch.float64)
    x, weight = torch.randn(2, 5, 6, requires_grad=True, **draw), torch.randn(12, 6, **draw)
    factors = [torch.randn(*shape, requires_grad=True, **draw)
               for shape in [(3, 6)] * len(slices) + [(12 // of, 3)] * len(slices)]
    for bias in (None, torch.randn(12, **draw)):
        assert torch.autograd.gradcheck(
            lambda x, *factors: summed(x, weight, bias, 'exact', 0.7, of, slices, *factors), (x, *factors))
    out = summed(x, weight, None, 'int8', 0.7, of, slices, *factors)
    want = summed(x, weight, None, 'exact', 0.7, of, slices, *factors)
    weights = torch.randn_like(out)
    assert torch.equal(out, want)
    found = torch.autograd.grad((out * weights).sum(), (x, *factors))
    at = rounded(x).requires_grad_()
    again = summed(at, weight, None, 'exact', 0.7, of, slices, *factors)
    for one, other in zip(found, torch.autograd.grad((again * weights).sum(), (at, *factors))):
        torch.testing.assert_close(one, other)
