"""FourierFT: the transform by hand, as a sum of waves; HF PEFT on the same spectrum; start, counts, refusals."""
import math

import pytest
import timm
import torch
from torch import nn

import e3va
from e3va.methods.fourierft import FourierLinear
from tests.conftest import build, distance, projected, stir

from .counts import SWIN, count


@pytest.mark.parametrize('of,slices', [(1, (0,)), (3, (0, 2)), (3, (1,))])
def test_equation(of, slices):
    """delta[a, b] = scale / (m n) sum_j c_j cos(2 pi (u_j a / m + v_j b / n)), on each adapted slice of m outputs."""
    torch.manual_seed(0)
    old, x, m, n = nn.Linear(10, 8 * of), torch.randn(5, 7, 10), 8, 10
    layer = FourierLinear(old, 7, 30., 777, 'normal', slices, of)
    want = old(x).clone()
    for part, spectrum in zip(slices, layer.spectrum):
        delta = torch.zeros(m, n)
        for c, place in zip(spectrum, layer.places.tolist()):
            u, v = divmod(place, n)
            for a in range(m):
                for b in range(n):
                    delta[a, b] += 30. / (m * n) * c.detach() * math.cos(2 * math.pi * (u * a / m + v * b / n))
        want[..., part * m:(part + 1) * m] += x @ delta.T
    assert len(set(layer.places.tolist())) == 7
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.merged()(x), want, rtol=1e-4, atol=1e-5)


def test_start():
    """N(0, 1) as in the paper, whose change has the stated deviation; or zero, which is the trunk."""
    old = nn.Linear(60, 50)
    layer = FourierLinear(old, 900, 30., 777, 'normal', (0,), 1)
    assert abs(layer.spectrum.mean()) < 0.1 and abs(layer.spectrum.std() - 1) < 0.1
    assert layer.delta().std().item() == pytest.approx(30 * (900 / 2) ** 0.5 / 3000, rel=0.1)
    x = torch.randn(3, 60)
    assert torch.equal(FourierLinear(old, 900, 30., 777, 'zero', (0,), 1)(x), old(x))
    assert not build('vit_mmpretrain', 'fourierft').tuning.method.starts_at_trunk
    assert build('vit_mmpretrain', 'fourierft_zero').tuning.method.starts_at_trunk


def test_what_is_added():
    """The spectra alone are saved; the places follow from the seed, the same for all layers of a shape."""
    tuned = build('vit_mmpretrain', 'fourierft')
    assert {name for name in tuned.state_dict() if name not in tuned.tuning.keys} == {
        f'layers.{i}.attn.qkv.spectrum' for i in range(4)}
    layers = [module for module in tuned.modules() if isinstance(module, FourierLinear)]
    assert all(torch.equal(layer.places, layers[0].places) for layer in layers)
    other = build('vit_mmpretrain', dict(type='FourierFT', n=40, seed=1)).layers[0].attn.qkv
    assert not torch.equal(other.places, layers[0].places)


def test_against_peft(peft):
    """The same places from the same seed, outputs, gradients and count."""
    options = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0)
    torch.manual_seed(0)
    ours = e3va.tune(timm.create_model('vit_tiny_patch16_224', **options),
                     dict(type='FourierFT', n=50, scale=20., roles=('proj', 'fc1', 'fc2')))
    torch.manual_seed(0)
    theirs = peft.get_peft_model(timm.create_model('vit_tiny_patch16_224', **options), peft.FourierFTConfig(
        n_frequency=50, scaling=20., random_loc_seed=777, target_modules=r'blocks\..*\.(proj|fc1|fc2)'))
    layers = {name: theirs.base_model.model.get_submodule(name) for name, module in ours.named_modules()
              if isinstance(module, FourierLinear)}
    assert len(layers) == 6 and e3va.report(ours)['trained'] == theirs.get_nb_trainable_parameters()[0] == 300
    for name, layer in layers.items():
        own = ours.get_submodule(name)
        u, v = layer.indices['default']
        assert torch.equal(own.places, u * own.in_features + v)
        with torch.no_grad():
            layer.fourierft_spectrum['default'].copy_(own.spectrum[0])
    x = torch.randn(2, 3, 32, 32)
    outs = ours(x), theirs(x)
    assert distance(*outs) <= 1e-5
    for out in outs:
        projected(out).backward()
    for name, layer in layers.items():
        assert distance(ours.get_submodule(name).spectrum.grad[0], layer.fourierft_spectrum['default'].grad) <= 1e-5


def test_defaults_are_those_of_peft(peft):
    config, method = peft.FourierFTConfig(), build('vit_timm', dict(type='FourierFT', n=99)).tuning.method
    assert (config.scaling, config.random_loc_seed) == (method.scale, method.seed)
    assert config.n_frequency == e3va.methods.FourierFT().n


def test_half_precision():
    """The transform runs in single precision, the layer in its own."""
    tuned = build('vit_mmpretrain', 'fourierft')
    stir(tuned)
    layer = tuned.layers[0].attn.qkv.bfloat16()
    assert layer(torch.randn(3, 24).bfloat16()).dtype == torch.bfloat16


def test_counts():
    """n for q and for v of each block: ViT-B 24,000; 72,000 with the paper's n = 3,000."""
    assert count('FourierFT') == 24_000
    assert count(dict(type='FourierFT', n=3000, scale=300.)) == 72_000
    assert count('FourierFT', 'mmdet.SwinTransformer', **SWIN['b']) == 48_000


def test_refusals():
    for options, words in [(dict(n=577), 'n must be an integer of at least 1 and at most 576, not 577'),
                           (dict(n=0), 'n must be'), (dict(init='ones'), "'normal', 'zero'"), (dict(seed=-1), 'seed'),
                           (dict(scale=None), 'scale must be a number'), (dict(roles=('w',)), "role 'w'")]:
        with pytest.raises(ValueError, match=words):
            build('vit_mmpretrain', dict(type='FourierFT', **options))
