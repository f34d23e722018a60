"""timm: plain classifiers with `tune`, maps with TimmTrunk, and the public checkpoint formats."""
import pytest
import timm
import torch
from safetensors.torch import save_file

import e3va
from e3va.registry import MODELS

SMALL = dict(depth=2, embed_dim=24, num_heads=2, num_classes=5)
MODELS_OF_TIMM = {
    'vit_small_patch14_reg4_dinov2': dict(SMALL, img_size=56),          # register tokens, LayerScale
    'vit_base_patch16_clip_224': dict(SMALL, img_size=64),              # norm in front of the blocks
    'vit_base_patch16_siglip_224': dict(SMALL, img_size=64),            # attention pooling
    'deit3_small_patch16_224': dict(SMALL, img_size=64),                # no position embedding for the class token
    'deit_tiny_distilled_patch16_224': dict(SMALL, img_size=64),        # two tokens, two heads
    'vit_base_patch16_224.mae': dict(SMALL, img_size=64, global_pool='avg', fc_norm=True),
    'swin_tiny_patch4_window7_224': dict(img_size=64, depths=(1, 1, 2, 1), embed_dim=24, num_heads=(1, 2, 4, 8),
                                         num_classes=5)}


def make(name, **changes):
    torch.manual_seed(0)
    return timm.create_model(name, **{**MODELS_OF_TIMM[name], **changes})


@pytest.mark.parametrize('method', ['E3VA', 'LoRA', 'Fixed'])
@pytest.mark.parametrize('name', MODELS_OF_TIMM)
def test_classifiers(name, method):
    """tune() on a plain timm model: same logits at the start, the head trains, what trains has a gradient."""
    stock, tuned = make(name), e3va.tune(make(name), method)
    x = torch.randn(2, 3, *stock.patch_embed.img_size)
    stock.eval(), tuned.eval()
    with torch.no_grad():
        # torch picks the kernel of an attention pooling by what requires gradients, frozen ones round otherwise
        limit = 1e-6 if 'siglip' in name else 0
        assert (stock(x) - tuned(x)).abs().max() <= limit
    assert set(stock.state_dict()) <= set(tuned.state_dict())
    tuned.train()
    tuned(x).square().mean().backward()
    trained = {key for key, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert {key for key, parameter in tuned.named_parameters() if parameter.grad is not None} == trained
    assert {key for key in trained if key.startswith('head')} == {
        key for key, _ in stock.named_parameters() if key.startswith('head')}
    report = e3va.report(tuned)
    assert report['head'] == sum(p.numel() for key, p in stock.named_parameters() if key.startswith('head'))


@pytest.mark.parametrize('name', ['vit_relpos_small_patch16_224', 'convit_tiny', 'twins_svt_small'])
def test_other_architectures_are_refused(name):
    with pytest.raises(ValueError, match='does not know the trunk'):
        e3va.tune(timm.create_model(name, num_classes=0), 'E3VA')


@pytest.mark.parametrize('name, options, fixed', [
    ('beit_base_patch16_224', dict(SMALL, img_size=(48, 32)), '48 x 32'),
    ('vit_small_patch14_reg4_dinov2', dict(SMALL, img_size=56), None)])
def test_a_fixed_size_is_named_at_build(name, options, fixed, capfd):
    del (options := dict(options))['num_classes']
    MODELS.build(dict(type='e3va.TimmTrunk', name=name, **options))
    said = [line for line in ''.join(capfd.readouterr()).splitlines() if 'takes images of' in line]
    assert len(said) == (fixed is not None) and all(fixed in line for line in said)


@pytest.mark.parametrize('size', [(56, 56), (57, 83)])
def test_maps_of_a_vit(size):
    """TimmTrunk gives timm's own intermediate features behind a LayerNorm, padded to whole patches."""
    options = dict(SMALL, img_size=56, name='vit_small_patch14_reg4_dinov2', out_indices=(0, 1))
    del options['num_classes']
    torch.manual_seed(0)
    trunk = MODELS.build(dict(type='e3va.TimmTrunk', **options)).eval()
    x = torch.randn(2, 3, *size)
    maps = trunk(x)
    padded = torch.nn.functional.pad(x, (0, -size[1] % 14, 0, -size[0] % 14))
    want = trunk.forward_intermediates(padded, indices=[0, 1], intermediates_only=True)
    for out, plain in zip(maps, want):
        assert out.shape == (2, 24, -(-size[0] // 14), -(-size[1] // 14))
        normed = torch.nn.functional.layer_norm(plain.permute(0, 2, 3, 1), (24,)).permute(0, 3, 1, 2)
        torch.testing.assert_close(out, normed)


def test_maps_of_a_swin():
    trunk = MODELS.build(dict(type='e3va.TimmTrunk', name='swin_tiny_patch4_window7_224', img_size=64,
                              depths=(1, 1, 2, 1), embed_dim=24, num_heads=(1, 2, 4, 8), out_indices=(1, 3))).eval()
    x = torch.randn(2, 3, 64, 96)
    want = trunk.forward_intermediates(x, indices=[1, 3], intermediates_only=True)
    for out, plain in zip(trunk(x), want):
        normed = torch.nn.functional.layer_norm(plain.permute(0, 2, 3, 1), plain.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(out, normed)


def test_feature_pyramid():
    """A plain ViT serves dense heads through mmseg's Feature2Pyramid; everything that trains gets a gradient."""
    import mmseg.models  # noqa: F401
    trunk = MODELS.build(dict(type='e3va.Tuned', trunk='e3va.TimmTrunk', method='E3VA', name='vit_tiny_patch16_224',
                              img_size=64, depth=4, embed_dim=24, num_heads=2, out_indices=(0, 1, 2, 3)))
    neck = MODELS.build(dict(type='mmseg.Feature2Pyramid', embed_dim=24, rescales=[4, 2, 1, 0.5],
                             norm_cfg=dict(type='BN')))
    trunk.train(), neck.train()
    maps = neck(trunk(torch.randn(2, 3, 64, 96)))
    assert [tuple(out.shape[2:]) for out in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    sum(out.square().mean() for out in maps).backward()
    assert all(parameter.grad is not None for parameter in trunk.parameters() if parameter.requires_grad)


@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: dict(model=s), lambda s: dict(
    state_dict={f'backbone.{key}': value for key, value in s.items()}), 'safetensors'])
def test_public_formats(wrap, tmp_path):
    """timm's own state dict with another image size and a head, the authors' 'model', a detector's backbone."""
    source = make('vit_small_patch14_reg4_dinov2', img_size=70)
    path = tmp_path / ('w.safetensors' if wrap == 'safetensors' else 'w.pth')
    if wrap == 'safetensors':
        save_file(source.state_dict(), path)
    else:
        torch.save(wrap(source.state_dict()), path)
    options = {key: value for key, value in SMALL.items() if key != 'num_classes'}
    trunk = MODELS.build(dict(
        type='e3va.Tuned', trunk='e3va.TimmTrunk', method='E3VA', name='vit_small_patch14_reg4_dinov2', img_size=56,
        init_cfg=dict(type='Pretrained', checkpoint=str(path)), **options))
    trunk.init_weights()
    assert not trunk.tuning.fresh
    assert torch.equal(trunk.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    assert trunk.pos_embed.shape[1] == 16                               # resized from 25
