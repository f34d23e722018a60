"""LoRA: equation 3 by hand, where it is put, and what it counts."""
import pytest
import torch
from torch import nn

import e3va
from e3va.methods.lora import LoRALinear
from tests.conftest import build


@pytest.mark.parametrize('of,slices', [(1, (0,)), (3, (0, 2)), (3, (1,))])
def test_equation(of, slices):
    """h = W x + alpha / r B A x on the adapted slices of the outputs, W x elsewhere; forward and delta agree."""
    torch.manual_seed(0)
    old, rank, scale = nn.Linear(12, 24 // of * of), 4, 0.5
    layer = LoRALinear(old, rank, scale, slices, of)
    nn.init.normal_(layer.up)
    x = torch.randn(5, 7, 12)
    want = old(x)
    width = 24 // of
    for i, part in enumerate(slices):
        want[..., part * width:(part + 1) * width] += scale * (x @ layer.down[i].T @ layer.up[i].T)
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(x @ (layer.weight + layer.delta()).T + layer.bias, want)
    torch.testing.assert_close(layer.merged()(x), want)


def test_starts_at_zero_and_adopts():
    old = nn.Linear(12, 12)
    layer = LoRALinear(old, 4, 1.)
    assert layer.weight is old.weight and layer.bias is old.bias
    assert not layer.up.any() and layer.down.any()
    x = torch.randn(3, 12)
    assert torch.equal(layer(x), old(x))


@pytest.mark.parametrize('roles,added', [
    (('q', 'v'), {'attn.qkv'}), ('proj', {'attn.proj'}), (('fc1', 'fc2'), {'ffn.layers.0.0', 'ffn.layers.1'})])
def test_placement(roles, added):
    """Exactly the named linears of every block get `down` and `up`."""
    tuned = build('vit_mmpretrain', dict(type='LoRA', roles=roles))
    names = {name for name in tuned.state_dict() if name not in tuned.tuning.keys}
    assert names == {f'layers.{i}.{name}.{factor}' for i in range(4) for name in added for factor in ('down', 'up')}


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
                           (dict(roles=()), 'roles is empty')]:
        with pytest.raises(ValueError, match=words):
            build('vit_mmpretrain', dict(type='LoRA', **options))
    import mmseg.models  # noqa: F401

    from e3va.registry import MODELS
    with pytest.raises(ValueError, match="no linear layer of the role 'q'.*fc1, fc2"):
        MODELS.build(dict(type='e3va.Tuned', trunk='mmseg.VisionTransformer', img_size=(64, 64), embed_dims=24,
                          num_layers=2, num_heads=2, method='LoRA'))
