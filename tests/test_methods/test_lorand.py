"""LoRand: x + U(GELU(D(x))) with matrices sum_b P_b K_b Q_b, in its place, and what it counts."""
import math

import pytest
import torch
from torch.nn import functional as F

from e3va.methods.lorand import Branches, LoRandLayer
from tests.conftest import build, distance, image, pair

from .counts import SWIN, count


def matrix(projection):
    """sum_b P_b K_b Q_b, (in, out)."""
    return sum(projection.p[b] @ projection.k[b] @ projection.q[b] for b in range(len(projection.p)))


def by_hand(layer, x):
    inner = F.gelu(x @ matrix(layer.down) + layer.down.bias)
    return x + inner @ matrix(layer.up) + layer.up.bias


@pytest.mark.parametrize('branches', [1, 2, 4])
def test_equation(branches):
    """The thin products are the whole matrices."""
    layer, x = LoRandLayer(12, 6, branches, 3), torch.randn(5, 7, 12)
    torch.testing.assert_close(layer(x), by_hand(layer, x))


def test_init():
    """Kaiming with a = sqrt(5) of each factor, as a plain tensor (its fan is the last dimension), and the bias."""
    made, torch_made = Branches(400, 300, 2, 20), torch.nn.init.kaiming_uniform_(torch.empty(20, 300), a=math.sqrt(5))
    for tensor, fan in ((made.p, 20), (made.k, 20), (made.q, 300), (made.bias, 400)):
        assert 0.95 / math.sqrt(fan) < tensor.abs().max() <= 1 / math.sqrt(fan)
    assert torch_made.abs().max() == pytest.approx(made.q.abs().max().item(), rel=0.01)


@pytest.mark.parametrize('second', ['after', 'before'])
def test_placement(second):
    """In Swin's blocks behind the attention, and behind the MLP or in front of it, before the residual addition."""
    stock, tuned = pair('swin_mmdet_partial', dict(type='LoRand', rank=2, second=second))
    stock.eval(), tuned.eval()
    images, outs = image('swin_mmdet_partial'), []
    x, shape = stock.patch_embed(images)
    for i, stage in enumerate(stock.stages[:3]):
        for j, block in enumerate(stage.blocks):
            edited = tuned.stages[i].blocks[j]
            x = x + by_hand(edited.attn.w_msa.proj.adapter, block.attn(block.norm1(x), shape))
            fc1, fc2 = block.ffn.layers[0][0], block.ffn.layers[1]
            h = block.norm2(x)
            if second == 'before':
                x = x + fc2(F.gelu(fc1(by_hand(edited.ffn.layers[0][0].adapter, h))))
            else:
                x = x + by_hand(edited.ffn.layers[1].adapter, fc2(F.gelu(fc1(h))))
        if i in (1, 2):
            outs.append(getattr(stock, f'norm{i}')(x).transpose(1, 2).unflatten(2, shape))
        x, shape = stage.downsample(x, shape)
    assert distance(tuned(images), outs) <= 1e-5


def test_names():
    tuned = build('vit_timm', dict(type='LoRand', rank=2))
    assert {name for name in tuned.state_dict() if name not in tuned.tuning.keys} == {
        f'blocks.{i}.{layer}.adapter.{projection}.{leaf}' for i in range(4) for layer in ('attn.proj', 'mlp.fc2')
        for projection in ('down', 'up') for leaf in ('p', 'k', 'q', 'bias')}


@pytest.mark.parametrize('size,exact', [('b', 1_203_456), ('l', 1_799_040)])
def test_counts_of_e3va(size, exact):
    """An adapter: 2 projections of 2 branches, k (C + C / 2) + k k each, and the biases. Swin-B prints 1.20 M."""
    blocks = [(width, depth) for width, depth in zip([SWIN[size]['embed_dims'] * 2 ** i for i in range(4)],
                                                     (2, 2, 18, 2))]
    assert exact == sum(2 * depth * (4 * (8 * width * 3 // 2 + 64) + width * 3 // 2) for width, depth in blocks)
    assert count('LoRand', 'mmdet.SwinTransformer', **SWIN[size]) == exact


@pytest.mark.parametrize('options,words', [
    (dict(branches=0), 'branches'), (dict(rank=13), 'rank .* at most 12, not 13'), (dict(mid=99), 'mid .* at most 24'),
    (dict(second='beside'), "second must be one of 'after', 'before'")])
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        build('vit_mmpretrain', dict(type='LoRand', **options))
