"""Matrices in a few bits: the codebook, the value and its gradient by the formula, the bytes."""
import copy
import math

import pytest
import torch

from e3va.layers import Bottleneck
from e3va.layers.quantised import codebook, pack, packed_bytes, unpack

FEW = pytest.mark.parametrize('bits', [1, 2, 4])


def unit(bits, width=24, rank=5, **options):
    torch.manual_seed(0)
    return Bottleneck(width, rank, None, 0., False, 'lora_kaiming', bits=bits, **options)


def plain(w, bits, straight=True):
    """The formula as published: a sum of signs over the thresholds, straight through on the normalised value."""
    codes, thresholds = (torch.tensor(values, dtype=w.dtype) for values in codebook(bits))
    mean, std = w.mean(), w.std(unbiased=True)
    z = (w - mean) / (std + 1e-5)
    q = (torch.sign(z.detach()[..., None] - thresholds) * (codes.diff() / 2)).sum(-1)
    return (q + z - z.detach()) * std + mean


def test_codebook():
    """The published levels; each the median of its bin, each threshold in the middle of two."""
    for bits, positive in ((1, [0.6745]), (2, [0.3778, 1.2657])):
        assert [round(code, 4) for code in codebook(bits)[0]] == [-code for code in positive[::-1]] + positive
    for bits in (1, 2, 4):
        codes, thresholds = (torch.tensor(values, dtype=torch.float64) for values in codebook(bits))
        assert len(codes) == 2 ** bits == len(thresholds) + 1
        edges = torch.cat([torch.zeros(1), torch.special.ndtr(thresholds), torch.ones(1)])
        torch.testing.assert_close(torch.special.ndtr(codes), (edges[1:] + edges[:-1]) / 2, rtol=0, atol=1e-9)
        torch.testing.assert_close(thresholds, (codes[1:] + codes[:-1]) / 2, rtol=0, atol=1e-3)  # after 500 rounds
        torch.testing.assert_close(codes, -codes.flip(0), rtol=0, atol=1e-9)


@FEW
def test_value_and_gradient(bits):
    """In float64; the gradient also written out, mean and deviation differentiated."""
    layer = unit(bits).double()
    layer.codes, layer.thresholds = (torch.tensor(values, dtype=torch.float64) for values in codebook(bits))
    with torch.no_grad():
        layer.down.add_(0.3)
    w = layer.down.detach().clone().requires_grad_()
    got, want = layer.value('down'), plain(w, bits)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert 2 ** bits - 2 <= len(got.unique()) <= 2 ** bits             # outer codes lie beyond a uniform matrix
    g = torch.randn_like(w)
    got.backward(g), want.backward(g)
    torch.testing.assert_close(layer.down.grad, w.grad, rtol=0, atol=1e-12)

    w, n = w.detach(), w.numel()
    m, s = w.sum() / n, ((w - w.sum() / n).square().sum() / (n - 1)).sqrt()
    z, of_s = (w - m) / (s + 1e-5), (w - m) / ((n - 1) * s)             # the latter: d s / d w
    code = (got.detach() - m) / s
    of_z = s * g
    byhand = (of_z - of_z.mean()) / (s + 1e-5) + (g * code - of_z * z / (s + 1e-5)).sum() * of_s + g.mean()
    torch.testing.assert_close(layer.down.grad, byhand, rtol=0, atol=1e-10)


@FEW
def test_bottleneck(bits):
    """Both matrices are quantised, each by itself; up is drawn near zero; the scale stays outside."""
    layer = unit(bits, scale=0.5, out=7)
    assert set(layer.state_dict()) == {'down', 'up', 'down_statistics', 'up_statistics'}
    assert tuple(layer.up.shape) == (7, 5) and 0 < layer.up.abs().max() <= 2e-3
    assert layer.down.abs().max() <= 1 / math.sqrt(24)
    x = torch.randn(3, 24)
    torch.testing.assert_close(layer(x), 0.5 * x @ plain(layer.down, bits).T @ plain(layer.up, bits).T)
    floats = unit(32, scale=0.5)
    assert set(floats.state_dict()) == {'down', 'up'} and floats.value('up') is floats.up and not floats.up.any()


def test_bytes_by_hand():
    """1 bit: eight signs to a byte, the first in the lowest bit; the last byte is filled up; then mean and std."""
    w = torch.tensor([1., -1., -1., 1., 1., -1., 1., -1., 1., 1.])
    data = pack(w, torch.full((2,), -1.), 1)
    assert data.tolist()[:2] == [0b01011001, 0b11] and data.numel() == packed_bytes(10, 1) == 10
    torch.testing.assert_close(data[-8:].clone().view(torch.float32), torch.stack([w.mean(), w.std()]), rtol=0, atol=0)
    w = torch.tensor([-9., -1., 1., 9., 9., -9.])                       # 2 bits: codes 0 1 2 3, 3 0
    assert pack(w, torch.full((2,), -1.), 2).tolist()[:2] == [0b11100100, 0b0011]
    assert [packed_bytes(768 * 32, bits) for bits in (1, 2, 4)] == [3080, 6152, 12296]


@FEW
@pytest.mark.parametrize('shape', [(5, 24), (3, 7), (1, 1001)])
@pytest.mark.parametrize('kind', ['normal', 'skewed', 'heavy', 'tiny', 'constant'])
def test_round_trip(bits, shape, kind):
    """The loaded matrix has the same value bit for bit, gives the same bytes again, and trains on from there."""
    torch.manual_seed(1)
    w = dict(normal=0.1 * torch.randn(shape) + 0.03, skewed=torch.rand(shape) ** 8, heavy=torch.randn(shape) ** 5,
             tiny=1e-6 * torch.randn(shape), constant=torch.full(shape, 0.25))[kind]
    layer = unit(bits, shape[1], shape[0])
    layer.down = torch.nn.Parameter(w)
    data = pack(layer.down, layer.down_statistics, bits)
    assert data.dtype == torch.uint8 and data.numel() == math.ceil(w.numel() * bits / 8) + 8

    again = unit(bits, shape[1], shape[0])
    floats, recorded = unpack(data, bits, shape)
    again.load_state_dict({'down': floats, 'down_statistics': recorded}, strict=False)
    layer.eval(), again.eval()
    assert torch.equal(again.value('down'), layer.value('down'))
    assert torch.equal(pack(again.down, again.down_statistics, bits), data)
    other = copy.deepcopy(again)
    again.train()
    trained = again.value('down')
    assert (again.down_statistics < 0).all() and torch.equal(trained, again.eval().value('down'))
    assert not (other.down_statistics < 0).all() and torch.equal(other.value('down'), layer.value('down'))
    if kind == 'normal' or bits == 1 and kind != 'tiny' and kind != 'constant':  # the codes stay, and so does the scale
        torch.testing.assert_close(trained, layer.value('down'), rtol=1e-3, atol=1e-5 * w.std())


def test_wrong_length():
    with pytest.raises(ValueError, match=r'10 bytes for \(3, 7\) in 1 bits, which take 11'):
        unpack(torch.zeros(10, dtype=torch.uint8), 1, (3, 7))
