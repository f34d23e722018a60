"""FacT: tensor train and Tucker by hand, piece by piece; what is shared stays one; counts and refusals."""
import copy
import pickle

import pytest
import timm
import torch
from torch import nn

import e3va
from e3va.methods.fact import Factors, TensorTrain, Tucker
from tests.conftest import alike, build, distance, image

from .counts import SWIN, count


def layer_of(inputs, outputs, slices=(0,), of=1, pieces=None, width=6, rank=2, total=0):
    """A layer of `inputs` x `outputs` pieces of 6 x 6, with factors away from their start."""
    old = nn.Linear(inputs * width, of * outputs * width)
    factors = Factors(width, rank, total)
    for parameter in factors.parameters():
        nn.init.normal_(parameter)
    options = old, factors, 0.5, 0., slices, of
    return old, factors, TensorTrain(*options) if pieces is None else Tucker(*options, 3, pieces)


def check(old, layer, want, inputs):
    """Output, delta and merge against `want` = {(slice of the outputs, piece in it, piece of the inputs): d x d}."""
    x = torch.randn(5, 7, old.in_features)
    d = next(iter(want.values())).shape[0]
    y = old(x).clone()
    width = old.out_features // layer.of
    for (part, j, i), change in want.items():
        y[..., part * width + j * d:part * width + (j + 1) * d] += x[..., i * d:(i + 1) * d] @ change
    torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x @ (layer.weight + layer.delta()).T + layer.bias, y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.merged()(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('inputs,outputs,slices,of', [
    (1, 1, (0,), 1), (1, 4, (0,), 1), (4, 1, (0,), 1), (1, 1, (0, 1, 2), 3), (1, 1, (0, 2), 3)])
def test_tensor_train(inputs, outputs, slices, of):
    """Each piece changes by s U C V, U (d, r), V (r, d), with the (r, r) core of the piece."""
    old, factors, layer = layer_of(inputs, outputs, slices, of)
    u, v, r = factors.u.T, factors.v.T, 2
    core = {(part, j, i): layer.core[i * r:(i + 1) * r, (n * outputs + j) * r:(n * outputs + j + 1) * r]
            for n, part in enumerate(slices) for j in range(outputs) for i in range(inputs)}
    check(old, layer, {piece: 0.5 * u @ c @ v for piece, c in core.items()}, inputs)


@pytest.mark.parametrize('pieces', ['paper', 'code'])
@pytest.mark.parametrize('inputs,outputs,slices,of', [
    (1, 1, (0,), 1), (1, 1, (0, 1, 2), 3), (1, 1, (0, 2), 3), (1, 4, (0,), 1), (4, 1, (0,), 1)])
def test_tucker(inputs, outputs, slices, of, pieces):
    """The core of piece j is sum_k P_jk C_k, from its column of P on; q, k, v, proj, fc1 and fc2 in this order.

    For fc1 and fc2 the authors' code reads the four cores, (r, r, 4) in memory, as r x 4 r: entry (a, b) of the core of
    piece m is theirs at a, and at column m r + b, i.e. of piece (m r + b) % 4 at (a, (m r + b) // 4); fc2's is turned.
    """
    old, factors, layer = layer_of(inputs, outputs, slices, of, pieces, total=20)
    u, v, r, n = factors.u.T, factors.v.T, 2, inputs * outputs * len(slices)
    cores = [sum(factors.p[k, 3 + j] * factors.c[:, :, k] for k in range(r)) for j in range(n)]
    if pieces == 'code' and inputs * outputs > 1:
        whole = torch.stack([torch.stack([cores[(m * r + b) % 4][:, (m * r + b) // 4] for b in range(r)], 1)
                             for m in range(4)])
        cores = list(whole if inputs == 1 else whole.mT)
    places = [(part, j, i) for part in slices for j in range(outputs) for i in range(inputs)]
    check(old, layer, {piece: 0.5 * u @ core @ v for piece, core in zip(places, cores, strict=True)}, inputs)


def reference(model, variant, x, factors, scale):
    """The forward of FacT's public code on timm's ViT, with its own layout of weights (U and V as linear layers)."""
    u, v = factors['u'], factors['v']
    index = 0
    x = model._pos_embed(model.patch_embed(x))
    for i, block in enumerate(model.blocks):
        if variant == 'tk':
            core = factors['c'] @ factors['p'][:, index:index + 4]
            q, k, w, o = (core[:, :, j] for j in range(4))
            core = factors['c'] @ factors['p'][:, index + 4:index + 12]
            r = u.shape[0]
            fc1, fc2 = core[:, :, :4].reshape(r, 4 * r), core[:, :, 4:].reshape(r, 4 * r).T
            index += 12
        else:
            q, k, w, o, fc1, fc2 = factors['cores'][i]
        y = block.norm1(x)
        qkv = block.attn.qkv(y) + scale * torch.cat([(y @ u.T) @ c @ v.T for c in (q, k, w)], 2)
        heads = qkv.view(*y.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4)
        y = ((heads[0] @ heads[1].mT * block.attn.scale).softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
        x = x + block.attn.proj(y) + scale * (y @ u.T) @ o @ v.T
        y = block.norm2(x)
        h = block.mlp.fc1(y) + scale * (((y @ u.T) @ fc1).unflatten(-1, (4, -1)) @ v.T).flatten(2)
        y = block.mlp.act(h)
        x = x + block.mlp.fc2(y) + scale * ((y.unflatten(-1, (4, -1)) @ u.T).flatten(2) @ fc2) @ v.T
    return model.norm(x)[:, 0]


@pytest.mark.parametrize('variant', ['tt', 'tk'])
def test_public_code(variant):
    """The whole net gives what the public code gives on the same weights."""
    torch.manual_seed(0)
    options = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=0)
    stock = timm.create_model('vit_tiny_patch16_224', **options).eval()
    tuned = e3va.tune(copy.deepcopy(stock), dict(type='FacT', rank=3, scale=0.5, variant=variant)).eval()
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    factors = dict(tuned.fact['24'].named_parameters())
    if variant == 'tt':
        factors['cores'] = [(*block.attn.qkv.core.chunk(3, 1), block.attn.proj.core, block.mlp.fc1.core,
                             block.mlp.fc2.core) for block in tuned.blocks]
    x = torch.randn(2, 3, 32, 32)
    assert distance(tuned(x), stock(x)) > 0.1
    torch.testing.assert_close(tuned(x), reference(stock, variant, x, factors, 0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('trunk,widths', [
    ('vit_timm', [24]), ('swin_mmdet', [24, 48, 96, 192]), ('swin_mmdet_partial', [24, 48, 96]),
    ('convnext_mmpretrain', [12, 24, 36, 48])])
def test_what_is_added(trunk, widths):
    """One U and V for each width, under the trunk's own `fact`; a core for each adapted layer, or with Tucker none."""
    tuned = build(trunk, 'fact_tt')
    names = {name for name in tuned.state_dict() if name not in tuned.tuning.keys}
    shared = {f'fact.{width}.{factor}' for width in widths for factor in 'uv'}
    layers = {name for name, module in tuned.named_modules() if isinstance(module, TensorTrain)}
    assert names == shared | {f'{layer}.core' for layer in layers} and layers
    tuned = build(trunk, 'fact_tk')
    names = {name for name in tuned.state_dict() if name not in tuned.tuning.keys}
    assert names == {f'fact.{width}.{factor}' for width in widths for factor in 'uvcp'}


@pytest.mark.parametrize('make', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_share_their_own(make):
    """In a copy all layers share the copy's factors, and a change of them reaches all layers."""
    tuned = alike('vit_timm', 'fact_tk', stirred=True)
    other = make(tuned.eval())
    found = {id(module.shared[0]) for module in other.modules() if isinstance(module, Tucker)}
    assert found == {id(other.fact['24'])} and id(tuned.fact['24']) not in found
    before = tuned(image('vit_timm'))
    with torch.no_grad():
        other.fact['24'].v.zero_()
    assert distance(other(image('vit_timm')), build_stock(tuned)(image('vit_timm'))) < 1e-6
    assert distance(tuned(image('vit_timm')), before) == 0


def build_stock(tuned):
    stock = build('vit_timm').eval()
    stock.load_state_dict({name: value for name, value in tuned.state_dict().items() if name in tuned.tuning.keys})
    return stock


def test_merged_trunk_has_no_trace():
    tuned = alike('swin_mmdet', 'fact_tt', stirred=True)
    assert hasattr(tuned, 'fact') and not hasattr(e3va.merge(tuned), 'fact')


def test_dropout():
    """Of what the core gives, in training alone."""
    old, factors, layer = layer_of(1, 1)
    layer.dropout, x = 0.5, torch.randn(9, 6)
    inner = x @ factors.u.T @ layer.core
    torch.manual_seed(1)
    kept = nn.functional.dropout(inner, 0.5)
    torch.manual_seed(1)
    torch.testing.assert_close(layer.train()(x), old(x) + 0.5 * kept @ factors.v.T)
    torch.testing.assert_close(layer.eval()(x), old(x) + 0.5 * inner @ factors.v.T)


@pytest.mark.parametrize('rank,exact,printed', [(8, 21_504, '21.5'), (16, 61_440, '61.4'), (32, 196_608, '196.6')])
def test_counts_of_tensor_train(rank, exact, printed):
    """ViT-B: 2 d r + 144 r^2."""
    assert count(dict(type='FacT', rank=rank)) == exact == 2 * 768 * rank + 144 * rank ** 2
    assert f'{exact / 1e3:.1f}' == printed


def test_other_counts():
    """ViT-B, Tucker: 2 d r + r^3 + 144 r. Swin-B: a set for each width, 12 pieces a block."""
    assert count(dict(type='FacT', rank=32, variant='tk')) == 2 * 768 * 32 + 32 ** 3 + 144 * 32 == 86_528
    want = sum(2 * width * 8 + 12 * depth * 64 for depth, width in zip((2, 2, 18, 2), (128, 256, 512, 1024)))
    assert count(dict(type='FacT', rank=8), 'mmdet.SwinTransformer', **SWIN['b']) == want


def test_refusals():
    for options, words in [(dict(rank=25), 'at most 24'), (dict(variant='tr'), "'tt', 'tk'"),
                           (dict(dropout=1), 'below 1'), (dict(pieces='both'), "'code', 'paper'"),
                           (dict(roles=('gate',)), 'gate'), (dict(scale='s'), 'scale must be a number')]:
        with pytest.raises(ValueError, match=words):
            build('vit_mmpretrain', dict(type='FacT', **options))
    options = dict(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, mlp_ratio=2.5)
    with pytest.raises(ValueError, match=r'fc1 \(24 -> 60\) is no multiple of 24: leave its role out'):
        e3va.tune(timm.create_model('vit_tiny_patch16_224', **options), 'FacT')
