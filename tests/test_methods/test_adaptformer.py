"""AdaptFormer: x + MLP(LN(x)) + s U ReLU(D x), beside which branches, and what it counts."""
import math

import pytest
import torch
from torch.nn import functional as F

import e3va
from e3va.methods.adaptformer import through
from tests.conftest import build, distance, image, pair

from ..test_layers.test_quantised import FEW, plain
from .counts import SWIN, count


def beside(layer, x, scale):
    return scale * (torch.relu(x @ layer.down.T + layer.down_bias) @ layer.up.T + layer.up_bias)


@pytest.mark.parametrize('branches', [('mlp',), ('attn', 'mlp')])
def test_equation_on_vit(branches):
    """On the un-normed input of the branch, behind LayerScale."""
    stock, tuned = pair('vit_timm', dict(type='AdaptFormer', rank=4, scale=0.3, branches=branches), stirred=True)
    images, outs = image('vit_timm'), []
    x = stock._pos_embed(stock.patch_embed(images))
    for i, block in enumerate(stock.eval().blocks):
        layers = tuned.blocks[i].adaptformer
        assert set(layers) == set(branches)
        side = beside(layers['attn'], x, 0.3) if 'attn' in branches else 0
        x = x + block.ls1(block.attn(block.norm1(x))) + side
        x = x + block.ls2(block.mlp(block.norm2(x))) + beside(layers['mlp'], x, 0.3)
        if i in (1, 3):
            outs.append(getattr(stock, f'norm{i}')(x[:, 1:]).transpose(1, 2).unflatten(2, (6, 7)))
    assert distance(tuned.eval()(images), outs) <= 1e-5


def test_equation_on_swin():
    """The same on tokens of an odd map; between the stages the trunk's own merges."""
    stock, tuned = pair('swin_mmdet', dict(type='AdaptFormer', rank=4), stirred=True)
    images, outs = image('swin_mmdet'), []
    stock.eval(), tuned.eval()
    x, shape = stock.patch_embed(images)
    for i, stage in enumerate(stock.stages):
        for j, block in enumerate(stage.blocks):
            x = x + block.attn(block.norm1(x), shape)
            x = block.ffn(block.norm2(x), identity=x) + beside(tuned.stages[i].blocks[j].adaptformer['mlp'], x, 0.1)
        outs.append(getattr(stock, f'norm{i}')(x).transpose(1, 2).unflatten(2, shape))
        if stage.downsample is not None:
            x, shape = stage.downsample(x, shape)
    assert distance(tuned(images), outs) <= 1e-5


def test_equation_on_convnext():
    """Beside the whole block, on maps with the channels first."""
    stock, tuned = pair('convnext_mmpretrain', dict(type='AdaptFormer', rank=4, branches=('attn', 'mlp')), stirred=True)
    stock.eval(), tuned.eval()
    x, outs = image('convnext_mmpretrain'), []
    for i, stage in enumerate(stock.stages):
        x = stock.downsample_layers[i](x)
        for j, block in enumerate(stage):
            layer = tuned.stages[i][j].adaptformer['mlp']
            inner = torch.relu(F.conv2d(x, layer.down[:, :, None, None], layer.down_bias))
            x = block(x) + 0.1 * F.conv2d(inner, layer.up[:, :, None, None], layer.up_bias)
        outs.append(getattr(stock, f'norm{i}')(x))
    assert distance(tuned(image('convnext_mmpretrain')), outs) <= 1e-5


@FEW
def test_quantised_equation(bits):
    """Bi-AdaptFormer: x + MLP(LN(x)) + s q(U) ReLU(q(D) x), without biases; in training with dropout inside."""
    stock, tuned = pair('vit_timm', dict(type='AdaptFormer', rank=6, scale=0.3, bits=bits), stirred=True)
    block, layer, x = stock.eval().blocks[1], tuned.eval().blocks[1].adaptformer['mlp'], torch.randn(2, 43, 24)
    assert {name for name, _ in layer.named_parameters()} == {'down', 'up'} and layer.dropout == 0.1
    want = x + block.ls1(block.attn(block.norm1(x)))
    beside = torch.relu(want @ plain(layer.down, bits).T) @ plain(layer.up, bits).T
    want = want + block.ls2(block.mlp(block.norm2(want))) + 0.3 * beside
    torch.testing.assert_close(through(tuned.tuning.parts, 0, 1, tuned.blocks[1], x, (6, 7)), want)
    assert not tuned.tuning.method.starts_at_trunk


def test_outside_drop_path():
    """Where DropPath drops the branches of an image, what stands beside them stays, unscaled."""
    tuned = build('vit_mmpretrain_maps', dict(type='AdaptFormer', rank=4, dropout=0.)).train()
    block, x = tuned.layers[2], torch.randn(2, 21, 24)
    block.attn.out_drop.drop_prob = block.ffn.dropout_layer.drop_prob = 1 - 1e-9
    torch.nn.init.normal_(block.adaptformer['mlp'].up)
    got = through(tuned.tuning.parts, 0, 2, block, x, (5, 4))
    torch.testing.assert_close(got, x + beside(block.adaptformer['mlp'], x, 0.1))


def test_start_and_names():
    """Down is kaiming, the rest zero; the state_dict has the four of each block up to the last output."""
    tuned = build('vit_mmpretrain_maps', dict(type='AdaptFormer', rank=4))
    assert {name for name in tuned.state_dict() if name not in tuned.tuning.keys} == {
        f'layers.{i}.adaptformer.mlp.{leaf}' for i in range(3) for leaf in ('down', 'up', 'down_bias', 'up_bias')}
    layer = tuned.layers[0].adaptformer['mlp']
    assert 0 < layer.down.abs().max() <= 1 / math.sqrt(24)
    assert not layer.up.any() and not layer.down_bias.any() and not layer.up_bias.any()
    assert layer.dropout == 0.1


def test_counts_of_vit_b():
    """(2 r d + r + d) L."""
    assert count(dict(type='AdaptFormer', rank=8)) == (2 * 8 * 768 + 8 + 768) * 12 == 156_768       # printed: 0.16 M
    assert count(dict(type='AdaptFormer', rank=8, bias=False)) == 147_456                           # Pear: 0.56 MiB
    assert count('AdaptFormer') == 1_189_632


@pytest.mark.parametrize('size,exact,printed', [('b', 3_107_328, '3.11'), ('l', 4_659_456, '4.66')])
def test_counts_of_e3va(size, exact, printed):
    """Its tables have two of rank 64 a block."""
    trained = count(dict(type='AdaptFormer', branches=('attn', 'mlp')), 'mmdet.SwinTransformer', **SWIN[size])
    assert trained == exact and f'{trained / 1e6:.2f}' == printed


def test_whole_model_of_timm():
    """A timm classifier: forward and forward_features; the entries that go past the blocks' neighbours refuse."""
    import timm
    model = timm.create_model('vit_tiny_patch16_224', img_size=64, depth=2, num_classes=5)
    e3va.tune(model, dict(type='AdaptFormer', rank=4))
    x = torch.randn(2, 3, 64, 64)
    assert model(x).shape == (2, 5) and model.forward_features(x).shape == (2, 17, 192)
    with pytest.raises(ValueError, match='tuned by AdaptFormer, whose forward this entry of timm goes past'):
        model.forward_intermediates(x)
    with pytest.raises(ValueError, match='AdaptFormer does not take attn_mask in the forward'):
        model.forward_features(x, attn_mask=torch.ones(17, 17))


@pytest.mark.parametrize('options,words', [
    (dict(rank=999), 'rank .* at most 24, not 999'), (dict(scale='s'), "scale must be a number, not 's'"),
    (dict(dropout=-1), 'dropout'), (dict(branches=('ffn',)), "branches must be one of 'attn', 'mlp'"),
    (dict(branches=()), 'branches is empty'), (dict(bits=3), 'bits must be one of 1, 2, 4, 32, not 3'),
    (dict(bits=1, bias=True), 'bias=True with bits=1: quantised projections have no biases')])
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        build('vit_mmpretrain', dict(type='AdaptFormer', **options))
