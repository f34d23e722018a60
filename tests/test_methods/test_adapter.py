"""Houlsby's and Pfeiffer's adapters: x + U act(D x) in its place, what it counts, and VPT's dead start."""
import math

import pytest
import torch

from e3va.methods.adapter import AdapterLayer
from tests.conftest import build, distance, image, pair, projected

from .counts import SWIN, count

ACTIVATIONS = dict(gelu=lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2, relu=lambda x: x * (x > 0),
                   quick_gelu=lambda x: x / (1 + torch.exp(-1.702 * x)))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_equation(activation, bias):
    """x + act(x D^T + b_D) U^T + b_U."""
    layer, x = AdapterLayer(12, 4, activation, bias=bias), torch.randn(5, 7, 12)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    down_bias, up_bias = (layer.down_bias, layer.up_bias) if bias else (0, 0)
    want = x + ACTIVATIONS[activation](x @ layer.down.T + down_bias) @ layer.up.T + up_bias
    torch.testing.assert_close(layer(x), want)


def test_dropout():
    """Of the channels inside, in training alone."""
    layer, x = AdapterLayer(12, 4, 'relu', dropout=0.5, init='xavier'), torch.randn(9, 12)
    inner = torch.relu(x @ layer.down.T + layer.down_bias)
    torch.manual_seed(1)
    kept = torch.nn.functional.dropout(inner, 0.5)
    torch.manual_seed(1)
    torch.testing.assert_close(layer(x), x + kept @ layer.up.T + layer.up_bias)
    torch.testing.assert_close(layer.eval()(x), x + inner @ layer.up.T + layer.up_bias)


@pytest.mark.parametrize('method', ['Adapter', 'AdapterPfeiffer'])
def test_placement(method):
    """Behind attention and MLP (Pfeiffer: behind the MLP), in front of LayerScale and the residual addition."""
    stock, tuned = pair('vit_timm', dict(type=method, rank=4), stirred=True)
    act = ACTIVATIONS['gelu' if method == 'Adapter' else 'relu']

    def adapter(name, x):
        a = tuned.get_submodule(f'{name}.adapter')
        return x + act(x @ a.down.T + a.down_bias) @ a.up.T + a.up_bias

    images = image('vit_timm')
    x, outs = stock._pos_embed(stock.patch_embed(images)), []
    for i, block in enumerate(stock.eval().blocks):
        f = block.attn(block.norm1(x))
        x = x + block.ls1(adapter(f'blocks.{i}.attn.proj', f) if method == 'Adapter' else f)
        x = x + block.ls2(adapter(f'blocks.{i}.mlp.fc2', block.mlp(block.norm2(x))))
        if i in (1, 3):
            outs.append(getattr(stock, f'norm{i}')(x[:, 1:]).transpose(1, 2).unflatten(2, (6, 7)))
    for got, want in zip(tuned.eval()(images), outs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('trunk,options,layers', [
    ('vit_mmpretrain', dict(type='Adapter'),
     [f'layers.{i}.{leaf}' for i in range(4) for leaf in ('attn.proj', 'ffn.layers.1')]),
    ('vit_timm', dict(type='AdapterPfeiffer', bias=False), [f'blocks.{i}.mlp.fc2' for i in range(4)]),
    ('swin_mmdet_partial', dict(type='Adapter', roles='proj'),          # nothing behind the last output, stage 2
     [f'stages.{i}.blocks.{j}.attn.w_msa.proj' for i, depth in enumerate((1, 2, 1)) for j in range(depth)]),
    ('convnext_timm', dict(type='Adapter'),                             # both roles are one layer
     [f'stages.{i}.blocks.{j}.mlp.fc2' for i, depth in enumerate((1, 2, 2)) for j in range(depth)])])
def test_names(trunk, options, layers):
    tuned = build(trunk, dict(options, rank=4))
    leaves = ('down', 'up') if options.get('bias') is False else ('down', 'up', 'down_bias', 'up_bias')
    assert {name for name in tuned.state_dict() if name not in tuned.tuning.keys} == {
        f'{layer}.adapter.{leaf}' for layer in layers for leaf in leaves}


def test_inits():
    """Kaiming or xavier with a zero up; NOAH's; the trunk's own; VPT's zeros."""
    spread = math.sqrt(6 / (4 + 64))
    for init, down, up, bias in [
            ('lora_xavier', spread, 0, 0), ('lora_kaiming', 1 / 8, 0, 0), ('xavier', spread, spread, 1e-5),
            ('trunc_normal', 0.1, 0.1, 0), ('vpt_zero', 0, 0, 0)]:
        layer = AdapterLayer(64, 4, init=init)
        for tensor, bound in ((layer.down, down), (layer.up, up), (layer.down_bias, bias), (layer.up_bias, bias)):
            largest = tensor.abs().max()
            assert largest <= bound and bool(largest) == bool(bound)
        assert tuple(layer.down.shape) == (4, 64) and tuple(layer.up.shape) == (64, 4)


def test_vpt_zero_is_dead():
    """Both matrices are zero: each gets a gradient, which is zero for ever but for the up bias."""
    stock, tuned = pair('vit_mmpretrain', dict(type='AdapterPfeiffer', activation='gelu', init='vpt_zero'))
    images = image('vit_mmpretrain')
    stock.eval(), tuned.eval()
    assert distance(stock(images), tuned(images)) == 0
    before = {name: value.clone() for name, value in tuned.named_parameters()}
    optimizer = torch.optim.Adam([value for value in tuned.parameters() if value.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        projected(tuned(images)).backward()
        optimizer.step()
    assert all(value.grad is not None for value in tuned.parameters() if value.requires_grad)
    moved = {name for name, value in tuned.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {f'layers.{i}.ffn.layers.1.adapter.up_bias' for i in range(4)}


def test_counts_of_vit_b():
    """2 (2 r d + r + d) L for Houlsby at r = 8; half of it behind the MLP alone (DMLoRA prints 0.16 M)."""
    assert count('Adapter') == 2 * (2 * 8 * 768 + 8 + 768) * 12 == 313_536
    assert count('AdapterPfeiffer') == count(dict(type='Adapter', roles='fc2')) == 156_768
    assert count(dict(type='AdapterPfeiffer', bias=False)) == 147_456       # Pear: 0.56 MiB
    assert f'{147_456 * 4 / 2 ** 20:.2f}' == '0.56'


@pytest.mark.parametrize('size,exact,printed', [('b', 3_107_328, '3.11'), ('l', 4_659_456, '4.66')])
def test_counts_of_e3va(size, exact, printed):
    """Tables 1 and 2 of E3VA, 'Adapter'."""
    trained = count(dict(type='Adapter', rank=64), 'mmdet.SwinTransformer', **SWIN[size])
    assert trained == exact and f'{trained / 1e6:.2f}' == printed


@pytest.mark.parametrize('options,words', [
    (dict(rank=0), 'rank must be an integer of at least 1'), (dict(rank=999), 'rank .* at most 24, not 999'),
    (dict(activation='elu'), "activation must be one of 'gelu'"), (dict(init='zero'), "init .*'vpt_zero'"),
    (dict(dropout=1), 'dropout must be a number of at least 0 and below 1, not 1'), (dict(roles=()), 'roles is empty'),
    (dict(roles=('q',)), "roles must be one of 'proj', 'fc2'")])
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        build('vit_mmpretrain', dict(type='Adapter', **options))
