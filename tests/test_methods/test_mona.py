"""Mona: the adapter by hand, on maps of every layout, with prefix tokens apart, and what it counts."""
import pytest
import torch
from torch.nn import functional as F

import e3va
from e3va.methods.mona import MonaLayer
from tests.conftest import build, distance, image, pair

from .counts import SWIN, count


def by_hand(a, x, shape=None):
    """The adapter on tokens (B, L, C), the last height x width of them a map; or without convolutions."""
    y = F.layer_norm(x, x.shape[-1:], a.norm_weight, a.norm_bias) * a.s1 + x * a.s2
    y = y @ a.down.T + a.down_bias
    if shape:
        first = x.shape[1] - shape[0] * shape[1]
        maps = y[:, first:].transpose(1, 2).unflatten(2, shape)
        found = [F.conv2d(maps, kernel, bias, padding=size // 2, groups=len(bias))
                 for kernel, bias, size in zip(a.kernels, a.kernel_biases, (3, 5, 7), strict=True)]
        maps = (found[0] + found[1] + found[2]) / 3 + maps
        y = torch.cat([y[:, :first], maps.flatten(2).transpose(1, 2)], dim=1)
    y = y + F.linear(y, a.mix, a.mix_bias)
    return x + F.gelu(y) @ a.up.T + a.up_bias


def stirred(layer):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.eval()


@pytest.mark.parametrize('prefix', [0, 1, 5])
def test_equation(prefix):
    """On tokens; those in front of the map get all but the convolutions, and nothing of them gets into the map."""
    layer, x, shape = stirred(MonaLayer(12, 4, 0.1)), torch.randn(2, prefix + 15, 12), (3, 5)
    want = by_hand(layer, x, shape)
    torch.testing.assert_close(layer(x, shape), want)
    torch.testing.assert_close(layer(x, shape)[:, :prefix], by_hand(layer, x[:, :prefix]))
    torch.testing.assert_close(layer(x, shape)[:, prefix:], by_hand(layer, x[:, prefix:], shape))
    maps = x[:, prefix:].unflatten(1, shape)
    torch.testing.assert_close(layer(maps, None), want[:, prefix:].unflatten(1, shape))


def test_on_vit_with_registers():
    """Behind each residual addition; class and register tokens stay out of the convolutions."""
    trunk = dict(type='e3va.Tuned', trunk='e3va.TimmTrunk', name='vit_small_patch14_reg4_dinov2', img_size=70, depth=2,
                 embed_dim=24, num_heads=2, method=dict(type='Mona', rank=4))
    from e3va.registry import MODELS
    tuned = stirred_trunk(MODELS.build(trunk))
    images, shape = torch.randn(2, 3, 57, 90), (5, 7)
    x = tuned._pos_embed(tuned.patch_embed(images))
    assert x.shape[1] == 1 + 4 + 35
    for block in tuned.blocks:
        x = by_hand(block.mona['attn'], x + block.ls1(block.attn(block.norm1(x))), shape)
        x = by_hand(block.mona['mlp'], x + block.ls2(block.mlp(block.norm2(x))), shape)
    want = tuned.norm1(x[:, 5:]).transpose(1, 2).unflatten(2, shape)
    assert distance(tuned(images), want) <= 1e-5


def stirred_trunk(tuned):
    for name, module in tuned.named_modules():
        if isinstance(module, MonaLayer):
            stirred(module)
    return tuned.eval()


@pytest.mark.parametrize('trunk', ['swin_mmdet', 'swin_mmpretrain'])
def test_on_swin(trunk):
    """On the whole map, of odd size, behind the windows."""
    stock, tuned = pair(trunk, dict(type='Mona', rank=4), stirred=True)
    stock.eval(), tuned.eval()
    x, shape = stock.patch_embed(image(trunk))
    if trunk == 'swin_mmpretrain':
        from mmpretrain.models.utils import resize_pos_embed
        x = x + resize_pos_embed(stock.absolute_pos_embed, stock.patch_resolution, shape, stock.interpolate_mode, 0)
    outs = []
    for i, stage in enumerate(stock.stages):
        for j, block in enumerate(stage.blocks):
            mona = tuned.stages[i].blocks[j].mona
            x = by_hand(mona['attn'], x + block.attn(block.norm1(x), shape), shape)
            x = by_hand(mona['mlp'], block.ffn(block.norm2(x), identity=x), shape)
        outs.append(getattr(stock, f'norm{i}')(x).transpose(1, 2).unflatten(2, shape))
        if stage.downsample is not None:
            x, shape = stage.downsample(x, shape)
    assert distance(tuned(image(trunk)), outs) <= 1e-5


def test_on_maps_of_timm():
    """Swin with the channels last: one stage by hand."""
    stock, tuned = pair('swin_timm', dict(type='Mona', rank=4), stirred=True)
    stock.eval(), tuned.eval()
    x = stock.patch_embed(image('swin_timm'))
    shape = tuple(x.shape[1:3])
    for block, edited in zip(stock.layers[0].blocks, tuned.layers[0].blocks):
        x = (x + block._attn(block.norm1(x))).flatten(1, 2)
        x = by_hand(edited.mona['attn'], x, shape)
        x = by_hand(edited.mona['mlp'], x + block.mlp(block.norm2(x)), shape).unflatten(1, shape)
    assert distance(tuned(image('swin_timm'))[0], stock.norm0(x).permute(0, 3, 1, 2)) <= 1e-5


def test_on_convnext():
    """One adapter behind each block, on maps with the channels first."""
    stock, tuned = pair('convnext_mmpretrain', dict(type='Mona', rank=4), stirred=True)
    stock.eval(), tuned.eval()
    x, outs = image('convnext_mmpretrain'), []
    for i, stage in enumerate(stock.stages):
        x = stock.downsample_layers[i](x)
        for j, block in enumerate(stage):
            shape = tuple(x.shape[2:])
            y = by_hand(tuned.stages[i][j].mona['mlp'], block(x).flatten(2).transpose(1, 2), shape)
            x = y.transpose(1, 2).unflatten(2, shape)
        outs.append(getattr(stock, f'norm{i}')(x))
    assert distance(tuned(image('convnext_mmpretrain')), outs) <= 1e-5


def test_names_and_inits():
    """The authors': D and U normal of 0.02, s_1 1e-6, s_2 1, the convolutions as torch fills them."""
    tuned = build('vit_mmpretrain_maps', dict(type='Mona', rank=4))
    leaves = ['norm_weight', 'norm_bias', 's1', 's2', 'down', 'down_bias', 'mix', 'mix_bias', 'up', 'up_bias',
              *(f'{name}.{i}' for name in ('kernels', 'kernel_biases') for i in range(3))]
    assert {name for name in tuned.state_dict() if name not in tuned.tuning.keys} == {
        f'layers.{i}.mona.{branch}.{leaf}' for i in range(3) for branch in ('attn', 'mlp') for leaf in leaves}
    layer = MonaLayer(96, 64, 0.1)
    assert torch.equal(layer.s1, torch.full((96,), 1e-6)) and torch.equal(layer.s2, torch.ones(96))
    assert torch.equal(layer.norm_weight, torch.ones(96)) and not layer.norm_bias.any()
    assert not layer.down_bias.any() and not layer.up_bias.any()
    for matrix in (layer.down, layer.up):
        assert 0.019 < matrix.std() < 0.021
    for size, kernel, bias in zip((3, 5, 7), layer.kernels, layer.kernel_biases, strict=True):
        conv = torch.nn.Conv2d(64, 64, size, groups=64)
        assert kernel.shape == conv.weight.shape and bias.shape == conv.bias.shape
        assert 0.9 / size < bias.abs().max() <= kernel.abs().max() <= 1 / size
    assert 0.9 / 8 < layer.mix.abs().max() <= 1 / 8 and layer.mix_bias.abs().max() <= 1 / 8


@pytest.mark.parametrize('size,exact', [('b', 3_667_456), ('l', 5_267_712)])
def test_counts(size, exact):
    """Each adapter 2 r C + r + C, the norm 2 C, the scales 2 C, 86 r and r r + r (printed: 4.16 and 5.08 M)."""
    blocks = [(SWIN[size]['embed_dims'] * 2 ** i, depth) for i, depth in enumerate((2, 2, 18, 2))]
    assert exact == sum(2 * depth * (128 * width + 64 + width + 4 * width + 86 * 64 + 64 * 64 + 64)
                        for width, depth in blocks)
    assert count('Mona', 'mmdet.SwinTransformer', **SWIN[size]) == exact


@pytest.mark.parametrize('options,words', [
    (dict(rank=0), 'rank'), (dict(rank=64), 'rank .* at most 24, not 64'), (dict(dropout=1.5), 'dropout')])
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        build('vit_mmpretrain', dict(type='Mona', **options))


def test_refuses_dropped_patches():
    import timm
    model = timm.create_model('vit_tiny_patch16_224', img_size=64, depth=2, patch_drop_rate=0.5)
    with pytest.raises(ValueError, match='this trunk drops patches in training: build it with patch_drop_rate=0'):
        e3va.tune(model, dict(type='Mona', rank=4))
