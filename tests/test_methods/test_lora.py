"""LoRA: equation 3 by hand, where it is put, and what it counts."""
import copy
import math

import pytest
import timm
import torch
from torch import nn

import e3va
from e3va.cost.saved import saved_bytes
from e3va.delta.load import differences
from e3va.delta.peft import export_peft
from e3va.layers.summed import pays
from e3va.methods.lora import LoRALinear
from e3va.trunks import used
from e3va.trunks.sampled import drawing, most
from tests.conftest import build, distance, image, pair, projected, steady, stir, tensors
from tests.test_layers.test_quantised import FEW, plain

from .counts import count


@pytest.mark.parametrize('of,slices', [(1, (0,)), (3, (0, 2)), (3, (1,))])
def test_equation(of, slices):
    """h = W x + alpha / r B A x on the adapted slices of the outputs, W x elsewhere; forward and delta agree."""
    torch.manual_seed(0)
    old, rank, scale = nn.Linear(12, 24 // of * of), 4, 0.5
    layer = LoRALinear(old, rank, scale, slices, of)
    for unit in layer.pairs.values():
        nn.init.normal_(unit.up)
    x = torch.randn(5, 7, 12)
    want = old(x)
    width = 24 // of
    for part in slices:
        unit = layer.pairs[str(part)]
        want[..., part * width:(part + 1) * width] += scale * (x @ unit.down.T @ unit.up.T)
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(x @ (layer.weight + layer.delta()).T + layer.bias, want)
    torch.testing.assert_close(layer.merged()(x), want)


@pytest.mark.parametrize('bits', [32, 1])
@pytest.mark.parametrize('of,slices', [(1, (0,)), (3, (0, 2)), (3, (1,))])
def test_the_sum_of_weights(of, slices, bits, monkeypatch):
    """Of many tokens: outputs and gradients are those of thin products within rounding."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(12, 24 // of * of), 4, 0.5, slices, of, bits).requires_grad_(False)
    layer.pairs.requires_grad_(True)
    for unit in layer.pairs.values():
        nn.init.normal_(unit.up)
    x, weights = torch.randn(4, 10, 12, requires_grad=True), torch.randn(4, 10, 24)
    inputs = x, *layer.pairs.parameters()
    assert pays(x, layer.weight, layer.width)
    out = layer(x)
    found = torch.autograd.grad((out * weights).sum(), inputs)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), out, rtol=0, atol=0)
    monkeypatch.setattr('e3va.methods.lora.pays', lambda *_: False)
    want = layer(x)
    torch.testing.assert_close(out, want)
    for one, other in zip(found, torch.autograd.grad((want * weights).sum(), inputs)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_where_thin_products_stay(monkeypatch):
    """Few tokens, 16 bits, autocast, a trace, a dropout between the factors, a weight that trains."""
    monkeypatch.setattr('e3va.methods.lora.summed', None)
    layer, x = LoRALinear(nn.Linear(12, 12), 4, 1., dropout=0.5).eval(), torch.randn(40, 12)
    layer(x)                                                            # the weight trains
    layer.requires_grad_(False)
    layer(x[:5])
    layer.train()(x), layer.eval()
    with torch.autocast('cpu', torch.bfloat16):
        layer(x)
    torch.jit.trace(layer, x, check_trace=False)
    copy.deepcopy(layer).bfloat16()(x.bfloat16())
    with pytest.raises(TypeError):
        layer(x)


@pytest.mark.parametrize('method', ['LoRA', 'E3VAMix'])
@pytest.mark.parametrize('trunk', ['vit_timm', 'swin_mmdet'])
def test_inputs_in_8_bits(trunk, method):
    """The outputs are the same; every factor's gradient has a cosine above 0.999, B's but for x; fewer bytes are kept.
    """
    exact, packed = (steady(trunk, 'lora', type=method, inputs=way, roles=('q', 'v', 'fc2'))
                     for way in ('exact', 'int8'))
    x, kept, found = image(trunk), [], []
    for model in (exact, packed):
        with drawing(most):
            kept.append(saved_bytes(lambda: projected(model(x)), model))
            out = projected(model(x))
        out.backward()
        found.append((out.detach(), {name: value.grad.double() for name, value in model.named_parameters()
                                     if value.grad is not None}))
    assert torch.equal(found[0][0], found[1][0]) and kept[1] < 0.9 * kept[0]
    for one, other in ((exact, packed), (packed, exact)):               # a delta of one is a delta of the other
        assert not differences(one.tuning.method.config, other.tuning.method)
    largest = max(float(value.norm()) for value in found[0][1].values())
    for name, value in found[0][1].items():
        if float(value.norm()) > 1e-4 * largest:
            other = found[1][1][name]
            assert float((value * other).sum() / value.norm() / other.norm()) > 0.999, name


def test_starts_at_zero_and_adopts():
    old = nn.Linear(12, 12)
    layer = LoRALinear(old, 4, 1.)
    assert layer.weight is old.weight and layer.bias is old.bias
    assert not layer.pairs['0'].up.any() and layer.pairs['0'].down.any()
    x = torch.randn(3, 12)
    assert torch.equal(layer(x), old(x))


@pytest.mark.parametrize('places,gone', [((0, 0), ()), ((2, 0), ()), ((0, 2), (0,)), ((0, 2), (0, 2))])
def test_shared_and_emptied_positions(places, gone):
    """A pair serves two positions of a layer as one module; a position without a pair is the stock layer's."""
    torch.manual_seed(0)
    old = nn.Linear(12, 24)
    layer = LoRALinear(old, 4, 0.5, (0, 2), 3)
    for unit in layer.pairs.values():
        nn.init.normal_(unit.up)
    parent = nn.ModuleDict(dict(qkv=layer))
    parent.set_submodule(f'qkv.pairs.{places[0]}', parent.get_submodule(f'qkv.pairs.{places[1]}'))
    for i in gone:
        delattr(parent.get_submodule('qkv.pairs'), str(i))
    x = torch.randn(5, 12)
    want = old(x)
    for i in {0, 2} - set(gone):
        unit = layer.pairs[str(i)]
        want[:, i * 8:(i + 1) * 8] += 0.5 * x @ (unit.up @ unit.down).T
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer.merged()(x), want)
    assert len(list(layer.parameters())) - 2 == 2 * len({id(unit) for unit in layer.pairs.values()})


@pytest.mark.parametrize('roles,added', [
    (('q', 'v'), {'attn.qkv.pairs.0', 'attn.qkv.pairs.2'}), ('proj', {'attn.proj.pairs.0'}),
    (('fc1', 'fc2'), {'ffn.layers.0.0.pairs.0', 'ffn.layers.1.pairs.0'})])
def test_placement(roles, added):
    """Exactly the named linears of every block get pairs of `down` and `up`, one for each slice."""
    tuned = build('vit_mmpretrain', dict(type='LoRA', roles=roles))
    names = {name for name in tuned.state_dict() if name not in tuned.tuning.keys}
    assert names == {f'layers.{i}.{name}.{factor}' for i in range(4) for name in added for factor in ('down', 'up')}


@FEW
@pytest.mark.parametrize('stirred', [False, True])
def test_quantised_equation(bits, stirred):
    """Bi-LoRA: W + s q(B) q(A), each factor of q and of v quantised by itself; merged exactly."""
    tuned = build('vit_timm', dict(type='LoRA', rank=6, alpha=3, bits=bits, dropout=0.))
    if stirred:
        stir(tuned)
    layer, x = tuned.blocks[1].attn.qkv, torch.randn(2, 5, 24)
    assert {name for name, _ in layer.named_parameters()} == {'weight', 'bias'} | {
        f'pairs.{i}.{name}' for i in (0, 2) for name in ('down', 'up')}
    want = x @ layer.weight.T + layer.bias
    for i, unit in layer.pairs.items():
        want[..., 24 * int(i):24 * int(i) + 24] += 0.5 * x @ plain(unit.down, bits).T @ plain(unit.up, bits).T
        assert not stirred or 2 ** bits - 2 <= len(unit.value('up').unique()) <= 2 ** bits
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer.merged()(x), want)


def test_start_of_bi_lora():
    """The published init and dropout; 32 bits: B is zero and nothing is dropped, as in LoRA's own paper."""
    method = build('vit_timm', dict(type='LoRA', rank=6, bits=1)).tuning.method
    assert method.dropout == 0.1 and not method.starts_at_trunk
    stock, tuned = pair('vit_timm', dict(type='LoRA', rank=6, bits=1))
    unit = tuned.blocks[0].attn.qkv.pairs['2']
    assert 0.5e-3 < unit.up.std() < 1e-3 and unit.up.abs().max() <= 2e-3       # N(0, 0.001) cut at 0.002
    assert 0 < unit.down.abs().max() <= 1 / math.sqrt(24)
    x = torch.randn(4, 24)
    assert torch.equal(unit.eval()(x), unit(x)) and not torch.equal(unit.train()(x), unit(x))
    stock.eval(), tuned.eval()
    assert 0 < distance(stock(image('vit_timm')), tuned(image('vit_timm'))) < 0.05
    method = build('vit_timm', dict(type='LoRA')).tuning.method
    assert method.dropout == 0 and method.starts_at_trunk


def test_counts():
    """ViT-B/16, r = 8 on q and v: 294,912 (Pear, GPS and DMLoRA print .29 M), in mmpretrain and in timm."""
    import timm

    from e3va.registry import MODELS
    trunk = MODELS.build(dict(type='e3va.Tuned', trunk='mmpretrain.VisionTransformer', arch='b', method='LoRA'))
    assert e3va.report(trunk)['trained'] == 294_912
    assert e3va.report(trunk)['delta_bytes'] == 4 * 294_912
    model = e3va.tune(timm.create_model('vit_base_patch16_224', num_classes=10), 'LoRA')
    report = e3va.report(model)
    assert report['trained'] == 294_912 and report['head'] == 7_690


def test_refusals():
    for options, words in [(dict(rank=0), 'rank'), (dict(rank=-1), 'rank'), (dict(rank=2.5), 'rank'),
                           (dict(rank=True), 'rank'), (dict(rank=999), 'at most'), (dict(roles=('gate',)), 'gate'),
                           (dict(roles=()), 'roles is empty'), (dict(bits=8), 'bits must be one of 1, 2, 4, 32, not 8'),
                           (dict(bits=True), 'bits'), (dict(dropout=1), 'dropout')]:
        with pytest.raises(ValueError, match=words):
            build('vit_mmpretrain', dict(type='LoRA', **options))
    import mmseg.models  # noqa: F401

    from e3va.registry import MODELS
    with pytest.raises(ValueError, match="no linear layer of the role 'proj'.*q, k, v, fc1, fc2"):
        MODELS.build(dict(type='e3va.Tuned', trunk='mmseg.VisionTransformer', img_size=(64, 64), embed_dims=24,
                          num_layers=2, num_heads=2, method=dict(type='LoRA', roles='proj')))
    with pytest.raises(ValueError, match="inputs='int8' is for linears.*MultiheadAttention layers alone"):
        MODELS.build(dict(type='e3va.Tuned', trunk='mmseg.VisionTransformer', img_size=(64, 64), embed_dims=24,
                          num_layers=2, num_heads=2, method=dict(type='LoRA', inputs='int8')))
    with pytest.raises(ValueError, match="inputs='int8' is for linears.*Conv2d layers alone"):
        e3va.tune(timm.create_model('resnet18'), dict(type='LoRA', inputs='int8'))


@pytest.mark.parametrize('roles', [('q', 'v'), ('k',), ('q', 'k', 'v', 'fc1')])
def test_attention_of_torch(roles):
    """Inside torch's own attention: the equation by hand, gradients of every factor, merged the stock class."""
    import mmseg.models  # noqa: F401

    from e3va.registry import MODELS
    options = dict(img_size=(32, 32), embed_dims=24, num_layers=2, num_heads=2, mlp_ratio=2)
    torch.manual_seed(0)
    stock = MODELS.build(dict(type='mmseg.VisionTransformer', **options))
    tuned = MODELS.build(dict(type='e3va.Tuned', trunk='mmseg.VisionTransformer', **options,
                              method=dict(type='LoRA', rank=3, alpha=6, roles=roles)))
    stock.eval(), tuned.eval()                                          # mmseg's returns nothing
    tuned.load_state_dict(stock.state_dict(), strict=False)
    x = torch.randn(2, 3, 32, 32)
    assert distance(tuned(x), stock(x)) == 0
    for name, parameter in tuned.named_parameters():
        if name.endswith('.up'):
            nn.init.normal_(parameter, std=0.1)
    by_hand = copy.deepcopy(stock)
    for layer, own in zip(tuned.layers, by_hand.layers):
        for part, unit in layer.attn.attn.pairs.items():
            own.attn.attn.in_proj_weight.data[24 * int(part):24 * int(part) + 24] += 2 * unit.up @ unit.down
        if 'fc1' in roles:
            unit = layer.ffn.layers[0][0].pairs['0']
            own.ffn.layers[0][0].weight.data += 2 * unit.up @ unit.down
    assert 0 < distance(by_hand(x), stock(x)) and distance(tuned(x), by_hand(x)) <= 1e-5
    with torch.no_grad():
        assert distance(tuned(x), by_hand(x)) <= 1e-5                   # torch's fast path
    tuned(x)[0].square().sum().backward()
    trained = {name: value for name, value in tuned.named_parameters() if value.requires_grad}
    assert len(trained) == 2 * 2 * len(roles) and all(value.grad is not None for value in trained.values())
    merged = e3va.merge(tuned)
    assert type(merged.layers[0].attn.attn) is nn.MultiheadAttention and set(merged.state_dict()) == set(
        stock.state_dict()) and distance(merged(x), by_hand(x)) <= 1e-5
    with pytest.raises(ValueError, match='attn.attn is torch.s own attention'):
        export_peft(tuned, 'nowhere')
    with pytest.raises(ValueError, match='give dropout=0'):
        e3va.tune(stock, dict(type='LoRA', rank=3, bits=1))


@pytest.mark.parametrize('trunk, blocks, first', [
    ('swin_mmdet', 3, 'stages.1.blocks.1'), ('swin_mmdet_partial', 1, 'stages.2.blocks.0'), ('vit_timm', 1, 'blocks.3'),
    ('convnext_mmpretrain', 1, 'stages.3.0')])
def test_the_last_blocks(trunk, blocks, first):
    """Those from `first` on have what LoRA in all has there, no other block has anything, and none gets a gradient."""
    method, needs = dict(type='LoRA', rank=2, roles=('fc1', 'fc2')), {}
    whole, tuned = build(trunk, method), build(trunk, dict(method, blocks=blocks))
    names = list(e3va.delta(whole))
    start = next(i for i, name in enumerate(names) if name.startswith(f'{first}.'))
    assert list(e3va.delta(tuned)) == names[start:] and start
    for block in (block for stage in used(tuned) for block in stage):
        block.register_forward_hook(lambda block, _, out: needs.update({block: tensors(out)[0].requires_grad}))
    projected(tuned(image(trunk))).backward()
    assert list(needs.values()) == [False] * (len(needs) - blocks) + [True] * blocks and len(needs) > blocks
    assert all(parameter.grad is not None for parameter in tuned.parameters() if parameter.requires_grad)


def test_what_has_no_last_blocks():
    for options, words in [(dict(blocks=0), 'blocks must be'), (dict(blocks=5), 'at least 1 and at most 4, not 5'),
                           (dict(blocks=1, targets=r'blocks\.0\..*qkv'), 'lie outside the last 1 blocks')]:
        with pytest.raises(ValueError, match=words):
            build('vit_timm', dict(type='LoRA', rank=2, **options))
    with pytest.raises(ValueError, match='does not know the blocks of Sequential'):
        e3va.tune(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), dict(type='LoRA', rank=2, blocks=1))
    assert count(dict(type='LoRA', rank=8, blocks=1)) == 24_576
