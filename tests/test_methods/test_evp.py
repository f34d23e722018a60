"""EVP: the filter on waves, the formula by hand on stock blocks, the count of GPS's Table 5."""
import math

import pytest
import torch
from torch.nn import functional as F

import e3va
from e3va.methods.evp import high_pass
from tests.conftest import build, distance, image, pair

METHOD = dict(type='EVP', reduction=4)


@pytest.mark.parametrize('size', [(32, 32), (24, 40), (31, 45)])
def test_high_pass_takes_slow_waves_and_leaves_fast_ones(size):
    """A quarter of the area: what is slower than half of half a side goes, in both directions at once."""
    height, width = size
    half = int(math.sqrt(height * width * 0.25)) // 2
    y, x = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    slow = torch.cos(2 * math.pi * (half - 1) * x) + 0 * y + 3
    fast = torch.cos(2 * math.pi * (half + 1) * x) + 0 * y
    assert high_pass(slow.expand(1, 3, -1, -1), 0.25).max() < 1e-4
    assert (high_pass((slow + fast).expand(1, 3, -1, -1), 0.25) - fast.abs()).abs().max() < 1e-4
    assert (high_pass(slow.expand(1, 3, -1, -1), 0.) - slow.abs()).abs().max() < 1e-4


def added(tuned, tokens, images, grid, i):
    """U GELU(T_i (D e + G h)) as linear layers and a convolution of torch."""
    own, step = tuned.evp, tuned.evp.patch.shape[-1]
    detail = high_pass(images, 0.25)
    detail = F.pad(detail, (0, grid[1] * step - detail.shape[3], 0, grid[0] * step - detail.shape[2]))
    drawn = F.conv2d(detail, own.patch, own.patch_bias, stride=step).flatten(2).transpose(1, 2)
    inner = tokens @ own.embed.T + own.embed_bias + drawn
    return F.gelu(inner @ own.tune[i].T + own.tune_biases[i]) @ own.up.T + own.up_bias


def test_formula_on_sam():
    """The stock blocks, each behind an addition."""
    stock, tuned = pair('vit_sam', METHOD, stirred=True)
    stock.eval(), tuned.eval()
    images = image('vit_sam')
    tokens, grid = stock.patch_embed(images)
    assert tuple(grid) == (5, 4)
    inputs = []
    for layer in stock.layers:                                          # what the stock trunk would give each block
        layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]) or (
            args[0] + added(tuned, tokens, images, grid, len(inputs) - 1).unflatten(1, grid),))
    assert distance(stock(images), tuned(images)) < 1e-5 and len(inputs) == 4


def test_class_tokens_are_left_alone():
    stock, tuned = pair('vit_mmpretrain', METHOD, stirred=True)
    stock.eval(), tuned.eval()
    images, count = image('vit_mmpretrain'), iter(range(4))
    tokens, grid = stock.patch_embed(images)
    for layer in stock.layers:
        layer.register_forward_pre_hook(lambda module, args: (torch.cat(
            [args[0][:, :1], args[0][:, 1:] + added(tuned, tokens, images, grid, next(count))], dim=1),))
    assert distance(stock(images), tuned(images)) < 1e-5


def test_images_are_padded_as_the_trunk_pads_them():
    """70x90 px in patches of 14: 6 x 7 of them."""
    tuned = build('vit_timm', METHOD).eval()
    assert [out.shape[-2:] for out in tuned(image('vit_timm'))] == [(6, 7)] * 2


def test_count_of_table_5():
    """r = 768 / 32: D and U, twelve T, G on 16x16 px of three colours, and their biases."""
    r, width = 24, 768
    want = (width * r + r) + (r * width + width) + 12 * (r * r + r) + (3 * 256 * r + r)
    with torch.device('meta'):
        trunk = build('vit_sam', arch='base', img_size=1024, out_channels=256, window_size=14)
        assert e3va.report(e3va.tune(trunk, 'EVP'))['trained'] == want == 63_312


@pytest.mark.parametrize('options, message', [
    (dict(reduction=0), 'reduction must be an integer of at least 1'),
    (dict(reduction=25), 'at most 24'), (dict(frequencies=1.), 'frequencies must be a number'),
    (dict(rank=3), 'has no option')])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        build('vit_mmpretrain', dict(type='EVP', **options))
