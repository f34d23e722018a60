"""RepAdapter: x + s (B (A x + a) + b) in front of attention and MLP by hand, groups, merge, counts, refusals."""
import pytest
import timm
import torch
from torch import nn

import e3va
from e3va.methods.repadapter import RepAdapterLinear
from tests.conftest import alike, build, distance, image, stir

from .counts import SWIN, count


def adapted(layer, x):
    """x + s (B (A x + a) + b) with B as a grouped 1 x 1 convolution, as the public code has it."""
    groups, width = len(layer.up), layer.in_features
    inner = x @ layer.down.T + layer.down_bias
    grouped = nn.functional.conv1d(inner.flatten(0, -2)[..., None], layer.up.reshape(width, -1, 1), groups=groups)
    return x + layer.scale * (grouped.view(x.shape) + layer.up_bias)


@pytest.mark.parametrize('rank,groups', [(4, 2), (3, 1), (6, 3)])
def test_equation(rank, groups):
    """Forward, delta with the bias that it makes, and merge agree with the formula."""
    torch.manual_seed(0)
    old, x = nn.Linear(12, 20), torch.randn(5, 7, 12)
    layer = RepAdapterLinear(old, rank, 0.5, groups, 0.)
    for parameter in (layer.down, layer.down_bias, layer.up, layer.up_bias):
        nn.init.normal_(parameter)
    want = adapted(layer, x) @ old.weight.T + old.bias
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(x @ (layer.weight + layer.delta()).T + layer.bias + layer.delta_bias(), want)
    torch.testing.assert_close(layer.merged()(x), want)


def test_init():
    """A xavier, B and the biases zero: the trunk's outputs."""
    old, x = nn.Linear(400, 30), torch.randn(5, 400)
    layer = RepAdapterLinear(old, 8, 1., 2, 0.)
    assert torch.equal(layer(x), old(x))
    bound = (6 / 408) ** 0.5
    assert 0.95 * bound < layer.down.abs().max() <= bound
    assert not any(parameter.any() for parameter in (layer.up, layer.up_bias, layer.down_bias))


def test_dropout():
    """Between A and B, in training alone."""
    layer, x = RepAdapterLinear(nn.Linear(6, 6), 4, 1., 2, 0.5), torch.randn(9, 6)
    nn.init.normal_(layer.up)
    inner = x @ layer.down.T
    up = torch.block_diag(*layer.up)
    torch.manual_seed(1)
    kept = nn.functional.dropout(inner, 0.5)
    torch.manual_seed(1)
    torch.testing.assert_close(layer.train()(x), (x + kept @ up.T) @ layer.weight.T + layer.bias)
    torch.testing.assert_close(layer.eval()(x), (x + inner @ up.T) @ layer.weight.T + layer.bias)


@pytest.mark.parametrize('branches', ['attn', 'mlp', ('attn', 'mlp')])
def test_public_code(branches):
    """On timm's ViT: adapters between norm and attention, norm and MLP, as the public code's blocks have them."""
    torch.manual_seed(0)
    options = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0)
    tuned = e3va.tune(timm.create_model('vit_tiny_patch16_224', **options).eval(),
                      dict(type='RepAdapter', rank=4, scale=0.5, branches=branches)).eval()
    stir(tuned)
    images = torch.randn(2, 3, 32, 32)
    x, plain = tuned._pos_embed(tuned.patch_embed(images)), nn.Linear.forward

    def linear(layer, x):
        return plain(layer, adapted(layer, x) if isinstance(layer, RepAdapterLinear) else x)

    for block in tuned.blocks:
        q, k, v = linear(block.attn.qkv, block.norm1(x)).view(2, 17, 3, 2, 12).permute(2, 0, 3, 1, 4)
        attended = ((q @ k.mT / 12 ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + block.attn.proj(attended)
        x = x + block.mlp.fc2(block.mlp.act(linear(block.mlp.fc1, block.norm2(x))))
    torch.testing.assert_close(tuned(images), tuned.norm(x)[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('trunk,method,layers', [
    ('vit_mmpretrain', 'repadapter', {f'layers.{i}.{layer}' for i in range(4)
                                      for layer in ('attn.qkv', 'ffn.layers.0.0')}),
    ('vit_mmpretrain', 'repadapter_attn', {f'layers.{i}.attn.qkv' for i in range(4)}),
    ('convnext_timm', 'repadapter', {f'stages.{i}.blocks.{j}.mlp.fc1' for i, n in enumerate((1, 2, 2))
                                     for j in range(n)})])
def test_placement(trunk, method, layers):
    tuned = build(trunk, method)
    names = {name for name in tuned.state_dict() if name not in tuned.tuning.keys}
    assert names == {f'{layer}.{entry}' for layer in layers for entry in ('down', 'down_bias', 'up', 'up_bias')}


def test_padded_windows_merge():
    """Swin pads its windows behind the norm; the adapter's bias acts there too, as the merged layer's does."""
    tuned = alike('swin_mmdet', 'repadapter', stirred=True)
    tuned.eval()
    assert distance(tuned(image('swin_mmdet')), e3va.merge(tuned)(image('swin_mmdet'))) <= 1e-5


def test_without_bias():
    with pytest.raises(ValueError, match='a layer without bias cannot take'):
        e3va.merge(build('swin_mmdet', 'repadapter', qkv_bias=False))


def test_counts():
    """ViT-B, r = 8: 221,184 weights (0.22 M in the tables) and 18,624 biases; Swin-B by (3 / 2 r d + r + d) x 2."""
    import mmpretrain.models  # noqa: F401

    from e3va.registry import MODELS
    trunk = MODELS.build(dict(type='e3va.Tuned', trunk='mmpretrain.VisionTransformer', arch='b', method='RepAdapter'))
    rows = e3va.report(trunk)['rows']
    assert sum(row['trained'] for row in rows if not row['name'].endswith('bias')) == 221_184
    assert sum(row['trained'] for row in rows) == 239_808
    want = sum(2 * depth * (12 * width + 8 + width) for depth, width in zip((2, 2, 18, 2), (128, 256, 512, 1024)))
    assert count('RepAdapter', 'mmdet.SwinTransformer', **SWIN['b']) == want


def test_refusals():
    for options, words in [(dict(rank=26), 'at most 24'), (dict(rank=3), 'groups=2, rank=3, width 24'),
                           (dict(rank=5, groups=5), 'groups=5, rank=5, width 24'), (dict(branches=()), 'is empty'),
                           (dict(branches='fc1'), "'attn', 'mlp'"), (dict(dropout=1.), 'below 1')]:
        with pytest.raises(ValueError, match=words):
            build('vit_mmpretrain', dict(type='RepAdapter', **options))
