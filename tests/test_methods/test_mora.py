"""MoRA: compress, square, decompress by hand, the sizes of the square, counts, refusals."""
import math

import pytest
import torch
from torch import nn

from e3va.methods.mora import MoRALinear
from tests.conftest import build

from .counts import SWIN, count


def by_hand(square, x, width, variant):
    """g(M f(x)) of one vector x, number by number."""
    size, inputs = len(square), len(x)
    groups = math.ceil(inputs / size)
    filled = [x[i] if i < inputs else x[i - inputs] for i in range(groups * size)]
    if variant == 'share':
        compressed = torch.stack([sum(filled[g * size + i] for g in range(groups)) for i in range(size)])
        out = square @ compressed
    else:
        outs = []
        for g in range(groups):
            turned, half = torch.zeros(size), size // 2
            for i in range(half):                           # the pair (i, i + half) turns by g / 10000^(2 i / size)
                angle = g / 10000 ** (2 * i / size)
                a, b = filled[g * size + i], filled[g * size + i + half]
                turned[i] = a * math.cos(angle) - b * math.sin(angle)
                turned[i + half] = b * math.cos(angle) + a * math.sin(angle)
            outs.append(square @ turned)
        out = torch.cat(outs)
    return torch.stack([out[o % len(out)] for o in range(width)])


@pytest.mark.parametrize('of,slices', [(1, (0,)), (3, (0, 2))])
@pytest.mark.parametrize('inputs,width,size', [(12, 12, 4), (10, 14, 6), (14, 10, 6), (8, 32, 4), (32, 8, 6)])
@pytest.mark.parametrize('variant', ['share', 'rope'])
def test_equation(variant, inputs, width, size, of, slices):
    """Sizes that divide and sizes that do not, more outputs than inputs and fewer; forward, delta and merge."""
    torch.manual_seed(0)
    old, x = nn.Linear(inputs, of * width), torch.randn(3, inputs)
    layer = MoRALinear(old, size, variant, slices, of)
    nn.init.normal_(layer.square)
    want = old(x).clone()
    for part, square in zip(slices, layer.square):
        want[:, part * width:(part + 1) * width] += torch.stack(
            [by_hand(square.detach(), row, width, variant) for row in x])
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x[:, None, None])[:, 0, 0], want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x @ (layer.weight + layer.delta()).T + layer.bias, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.merged()(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('variant', ['share', 'rope'])
def test_at_full_size(variant):
    """ViT-B's fc1."""
    layer, x = MoRALinear(nn.Linear(768, 3072), 110, variant, (0,), 1), torch.randn(768)
    nn.init.normal_(layer.square, std=0.02)
    want = nn.functional.linear(x, layer.weight, layer.bias) + by_hand(layer.square[0].detach(), x, 3072, variant)
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-4)


def test_starts_at_zero_and_saves_the_squares():
    old, x = nn.Linear(12, 12), torch.randn(3, 12)
    layer = MoRALinear(old, 4, 'rope', (0,), 1)
    assert torch.equal(layer(x), old(x)) and set(layer.state_dict()) == {'weight', 'bias', 'square'}
    tuned = build('vit_mmpretrain', 'mora')
    names = {name for name in tuned.state_dict() if name not in tuned.tuning.keys}
    assert names == {f'layers.{i}.{layer}.square' for i in range(4)
                     for layer in ('attn.qkv', 'attn.proj', 'ffn.layers.0.0', 'ffn.layers.1')}


@pytest.mark.parametrize('options,size,mib', [
    (dict(), 110, '1.108'), (dict(variant='share'), 111, '1.128'), (dict(size=112), 112, '1.148')])
def test_counts_on_vit_b(options, size, mib):
    """24 squares; Pear prints 1.15 MiB."""
    trained = count(dict(type='MoRA', **options))
    assert trained == 24 * size ** 2 and f'{4 * trained / 2 ** 20:.3f}' == mib


def test_count_on_swin():
    """The size follows the width of each stage: sqrt(2 C 8), rounded down to an even number."""
    want = sum(2 * depth * size ** 2 for depth, size in zip((2, 2, 18, 2), (44, 64, 90, 128)))
    assert count('MoRA', 'mmdet.SwinTransformer', **SWIN['b']) == want


def test_refusals():
    for options, words in [(dict(rank=99), 'rank=99 asks for a square of 69 in a weight of 24 x 24'),
                           (dict(size=25, variant='share'), 'size must be .* at most 24, not 25'),
                           (dict(rank=0), 'rank'), (dict(size=7), 'size must be even, not 7'),
                           (dict(variant='sum'), "'rope', 'share'")]:
        with pytest.raises(ValueError, match=words):
            build('vit_mmpretrain', dict(type='MoRA', **options))
