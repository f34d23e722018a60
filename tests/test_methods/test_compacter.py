"""Compacter: matrices of Kronecker products, the A_i shared by all, and what it counts."""
import copy
import math
import pickle

import pytest
import torch
from torch.nn import functional as F

import e3va
from e3va.methods.compacter import Kronecker
from tests.conftest import build, distance, image, pair, stir

from .counts import count


def matrix(layer, rule):
    """H = sum_i A_i kron (s_i t_i^T), (in, out)."""
    return sum(torch.kron(a, torch.outer(s, t)) for a, s, t in zip(rule, layer.s, layer.t, strict=True))


@pytest.mark.parametrize('n', [1, 2, 4])
def test_kronecker(n):
    """x H + b, by products that never make H."""
    layer, rule, x = Kronecker(12, 8, n, bias=True), torch.randn(n, n, n), torch.randn(5, 7, 12)
    torch.nn.init.normal_(layer.bias)
    torch.testing.assert_close(layer(x, rule), x @ matrix(layer, rule) + layer.bias)


@pytest.mark.parametrize('roles', [('proj', 'fc2'), ('fc2',)])
def test_placement(roles):
    """x + U(GELU(D(x))) behind attention and MLP; Compacter++ behind the MLP alone."""
    stock, tuned = pair('vit_timm', dict(type='Compacter', rank=4, n=2, roles=roles), stirred=True)
    stock.eval(), tuned.eval()
    rule = tuned.compacter.rule

    def adapter(name, x):
        layer = tuned.get_submodule(f'{name}.adapter')
        inner = F.gelu(x @ matrix(layer.down, rule) + layer.down.bias)
        return x + inner @ matrix(layer.up, rule) + layer.up.bias

    images, outs = image('vit_timm'), []
    x = stock._pos_embed(stock.patch_embed(images))
    for i, block in enumerate(stock.blocks):
        f = block.attn(block.norm1(x))
        x = x + block.ls1(adapter(f'blocks.{i}.attn.proj', f) if 'proj' in roles else f)
        x = x + block.ls2(adapter(f'blocks.{i}.mlp.fc2', block.mlp(block.norm2(x))))
        if i in (1, 3):
            outs.append(getattr(stock, f'norm{i}')(x[:, 1:]).transpose(1, 2).unflatten(2, (6, 7)))
    assert distance(tuned(images), outs) <= 1e-5


def test_names_and_inits():
    """One rule for all; s and t glorot uniform with a gain of sqrt(2), as vectors; biases zero; A_i of 1e-4."""
    tuned = build('vit_mmpretrain', dict(type='Compacter', rank=8, n=4))
    assert {name for name in tuned.state_dict() if name not in tuned.tuning.keys} == {'compacter.rule'} | {
        f'layers.{i}.{layer}.adapter.{projection}.{leaf}' for i in range(4) for layer in ('attn.proj', 'ffn.layers.1')
        for projection in ('down', 'up') for leaf in ('s', 't', 'bias')}
    assert 0.5e-4 < tuned.compacter.rule.std() < 1.5e-4
    layer = Kronecker(400, 80, 4, bias=True)
    assert layer.s.abs().max().item() == pytest.approx(math.sqrt(2 * 6 / (100 + 1)), rel=0.05)
    assert layer.t.abs().max().item() == pytest.approx(math.sqrt(2 * 6 / (20 + 1)), rel=0.1)
    assert not layer.bias.any()


def shared(tuned):
    """Whether every adapter reads the trunk's own rule."""
    return all(module.shared[0] is tuned.compacter for module in tuned.modules() if hasattr(module, 'shared'))


@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_sharing_survives_copies(duplicate):
    tuned = build('swin_mmdet', dict(type='Compacter', rank=4, n=2))
    stir(tuned)
    other = duplicate(tuned.eval())
    assert shared(tuned) and shared(other) and other.compacter is not tuned.compacter
    want = tuned(image('swin_mmdet'))
    with torch.no_grad():
        other.compacter.rule.zero_()
    assert distance(tuned(image('swin_mmdet')), want) == 0 < distance(other(image('swin_mmdet')), want)


@pytest.mark.parametrize('learned', [True, False])
def test_sharing_survives_loading(tmp_path, learned):
    """By state_dict, with its tensors assigned too, and by a delta, which holds the rule once."""
    method = dict(type='Compacter', rank=4, n=2, learn_rule=learned)
    stock, tuned = pair('vit_timm', method, stirred=True)
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    others = [build('vit_timm', method, seed=seed) for seed in (2, 3, 4)]
    others[0].load_state_dict(tuned.state_dict())
    others[1].load_state_dict(tuned.state_dict(), assign=True)
    others[2].load_state_dict(stock.state_dict(), strict=False)
    e3va.load_delta(others[2], tmp_path / 'delta.safetensors')
    want = tuned.eval()(image('vit_timm'))
    assert [name for name in e3va.delta(tuned) if 'rule' in name] == ['compacter.rule']
    for other in others:
        assert shared(other) and distance(other.eval()(image('vit_timm')), want) == 0
        assert isinstance(other.compacter.rule, torch.nn.Parameter) == learned


def test_counts():
    """Pear's row, 0.15 MiB: 24 adapters of (768 + 48) twice, beside the 4 x 4 x 4 that all share."""
    row = dict(type='Compacter', rank=48, n=4, bias=False)
    assert count(dict(row, learn_rule=False)) == 24 * 2 * (768 + 48) == 39_168
    assert count(row) == 39_168 + 64 and f'{39_232 * 4 / 2 ** 20:.2f}' == '0.15'
    assert count('Compacter') == 39_232 + 24 * (768 + 48)
    assert count(dict(row, roles='fc2')) == 39_168 // 2 + 64


@pytest.mark.parametrize('options,words', [
    (dict(rank=0), 'rank'), (dict(rank=28), 'rank .* at most 24, not 28'), (dict(rank=4, n=0), 'n must be'),
    (dict(rank=6, n=4), 'n must divide the width of a block and the rank: n=4, width 24, rank=6'),
    (dict(rank=10, n=5), 'n=5, width 24'), (dict(roles=('k',)), "roles must be one of 'proj', 'fc2'")])
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        build('vit_mmpretrain', dict(type='Compacter', **options))
