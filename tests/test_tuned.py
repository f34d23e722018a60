"""The factory: what it refuses, what it freezes, and what it leaves to the stock trunk."""
import copy

import pytest
import timm
import torch
from mmengine.registry import DefaultScope

import e3va
from e3va.methods import Method
from e3va.registry import METHODS, MODELS
from e3va.tuned import find_tuned
from tests.conftest import SWIN, build, distance, image, projected


@pytest.mark.parametrize('trunk,method,changes,words', [
    ('mmdet.SwinTransformer', 'E3AV', {}, "unknown method 'E3AV'.*E3VA"),
    ('mmdet.SwinTransformer', dict(rank=8), {}, 'no method is named'),
    ('mmdet.SwinTransformer', dict(type='E3VA', ranks=8), {}, "no option 'ranks'.*rank"),
    ('mmdet.SwinTransformer', dict(type='E3VA', rank=0), {}, 'rank must be an integer of at least 1.*0'),
    ('mmdet.SwinTransformer', dict(type='E3VA', rank=-4), {}, 'rank must be'),
    ('mmdet.SwinTransformer', dict(type='E3VA', rank=8.), {}, 'rank must be'),
    ('mmdet.SwinTransformer', dict(type='E3VA', rank=13), {}, 'at most 12'),
    ('mmdet.SwinTransformer', dict(type='E3VA', join='add'), {}, "join must be one of 'replace'"),
    ('mmdet.SwinTransformer', 'E3VA', dict(out_indices=(1, 4)), r'out_indices=\(1, 4\).*4 stages'),
    ('mmdet.SwinTransfomer', 'E3VA', {}, 'no backbone'),
    ('mmdet.ResNet', 'E3VA', dict(depth=18), 'does not know the trunk.*ResNet.*swin_mm'),
    (None, 'E3VA', {}, 'trunk must be the type'),
])
def test_refusals(trunk, method, changes, words):
    options = {} if trunk in (None, 'mmdet.ResNet') else SWIN
    with pytest.raises(ValueError, match=words):
        MODELS.build(dict(type='e3va.Tuned', trunk=trunk, method=method, **{**options, **changes}))


def test_timm_refusals():
    for options, words in [(dict(name='swin_tinny_patch4_window7_224'), 'no model.*swin_tiny'),
                           (dict(name='resnet18'), 'TimmTrunk gives maps of the families .*resnet18'),
                           (dict(name='vit_relpos_small_patch16_224'), 'is a VisionTransformerRelPos, of none of them'),
                           (dict(name='vit_tiny_patch16_224', out_indices=(12,)), '12 blocks')]:
        with pytest.raises(ValueError, match=words):
            MODELS.build(dict(type='e3va.Tuned', trunk='e3va.TimmTrunk', method='E3VA', **options))


def test_method_given_twice():
    tuned = build('swin_mmdet', 'e3va')
    with pytest.raises(ValueError, match='given twice'):
        e3va.tune(tuned, 'LoRA')


def test_subclass_with_its_own_forward_is_refused():
    """Its forward would be replaced silently by the stock one."""
    from mmdet.models import SwinTransformer

    class Other(SwinTransformer):
        def forward(self, x):
            return super().forward(x * 2)

    class Same(SwinTransformer):
        pass
    with pytest.raises(ValueError, match='a subclass'):
        e3va.tune(Other(**SWIN), 'E3VA')
    e3va.tune(Same(**SWIN), 'E3VA')


def test_scope_of_the_trunk():
    """An unprefixed trunk is looked up in the current scope; without one, an ambiguous name is refused by name."""
    import mmdet.models  # noqa: E401, F401
    from mmengine.registry import init_default_scope
    for scope in ('mmdet', 'mmseg'):
        init_default_scope(scope)
        trunk = MODELS.build(dict(type='e3va.Tuned', trunk='SwinTransformer', method='Fixed', **SWIN))
        assert type(trunk).__module__.startswith(scope)
    with DefaultScope.overwrite_default_scope(None):
        pass
    DefaultScope._instance_dict.clear()
    with pytest.raises(ValueError, match='is in .*mmdet.*write e.g. trunk='):
        MODELS.build(dict(type='e3va.Tuned', trunk='SwinTransformer', method='Fixed', **SWIN))


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_resolves_from_every_library(scope):
    """`type='e3va.Tuned'` in the registries of the libraries."""
    import importlib

    from mmengine.registry import init_default_scope
    init_default_scope(scope)
    registry = importlib.import_module(f'{scope}.registry').MODELS
    assert registry.get('e3va.Tuned') is MODELS.get('Tuned')


def test_any_trunk_for_full_and_fixed():
    """Fixed on a ResNet: every parameter and every batch norm statistic stays."""
    import mmdet.models  # noqa: F401
    trunk = MODELS.build(dict(type='e3va.Tuned', trunk='mmdet.ResNet', depth=18, method='Fixed', frozen_stages=1))
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    trunk.train()
    trunk(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(before[name], value) for name, value in trunk.state_dict().items())
    assert not any(parameter.requires_grad for parameter in trunk.parameters())


def test_frozen_stages():
    """Full keeps the config's frozen_stages; a method decides for itself, whatever they say."""
    full = build('swin_mmdet', 'full', frozen_stages=2)
    assert not any(p.requires_grad for p in full.stages[1].parameters())
    assert all(p.requires_grad for p in full.stages[2].parameters())
    tuned = build('swin_mmdet', 'lora', frozen_stages=4)
    tuned.train()
    assert all(p.requires_grad for name, p in tuned.named_parameters() if name.endswith(('.up', '.down')))


def test_modes():
    """E3VA: the trunk stays in eval, the highway trains. LoRA: the config's own DropPath is at work."""
    tuned = build('swin_mmdet', 'e3va')
    assert tuned.train() is tuned and tuned.training
    assert not any(module.training for module in tuned.stages.modules())
    assert all(module.training for module in tuned.e3va.modules())
    x = image('swin_mmdet')
    assert torch.equal(tuned(x)[3], tuned(x)[3])
    lora = build('swin_mmdet', 'lora').train()
    assert all(module.training for module in lora.stages.modules())
    assert tuned.eval() is tuned and not tuned.training


def test_whole_model_and_find():
    """tune() on a model with a backbone tunes the backbone; neck and heads keep what they have."""
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.neck = build('vit_mmpretrain'), torch.nn.Linear(24, 2)
    model = e3va.tune(Model(), 'E3VA')
    prefix, trunk = find_tuned(model)
    assert prefix == 'backbone.' and trunk is model.backbone
    report = e3va.report(model)
    assert report['head'] == 50 and report['trained'] == sum(
        p.numel() for p in trunk.parameters() if p.requires_grad)
    assert report['trained'] + report['frozen'] == sum(p.numel() for p in trunk.parameters())
    assert 'trained (trunk and method)' in str(report)
    with pytest.raises(ValueError, match='no tuned trunk'):
        e3va.report(torch.nn.Linear(2, 2))


def test_hook_is_demanded():
    """A method that names a hook stops at the first training step without it, with the line to add."""
    class Hooked(Method):
        hook = 'e3va.GPSHook'
        trunk_mode = 'eval'
    METHODS.register_module(module=Hooked, force=True)
    try:
        tuned = build('vit_mmpretrain', dict(type='Hooked'))
        tuned.eval()
        tuned(image('vit_mmpretrain'))                                  # inference needs no hook
        tuned.train()
        with pytest.raises(ValueError, match=r"default_hooks = dict\(gps=dict\(type='e3va.GPSHook'\)\)"):
            tuned(image('vit_mmpretrain'))
        tuned.tuning.hooked = True
        tuned(image('vit_mmpretrain'))
    finally:
        METHODS._module_dict.pop('Hooked')


@pytest.mark.parametrize('channels', [1, 4, 13])
@pytest.mark.parametrize('trunk', ['swin_mmdet', 'swin_mmpretrain', 'vit_mmpretrain', 'vit_timm', 'convnext_timm'])
def test_images_that_are_not_rgb(trunk, channels, tmp_path):
    """The first layer gets what timm makes of the published weights, and trains, and the delta holds it."""
    from timm.models import adapt_input_conv

    from e3va.trunks.channels import first_layer
    stock = build(trunk)
    name, layer = first_layer(stock)
    option = dict(in_chans=channels) if 'timm' in trunk else dict(in_channels=channels)
    tuned, again = (build(trunk, dict(type='LoRA', rank=2, roles=('fc1', )), seed=3, **option) for _ in range(2))
    for model in (tuned, again):
        model.load_state_dict(stock.state_dict(), strict=False)
    weight = tuned.get_submodule(name).weight
    assert weight.requires_grad
    assert torch.allclose(weight, adapt_input_conv(channels, layer.weight), atol=1e-7)
    assert f'{name}.weight' in e3va.delta(tuned)
    with torch.no_grad():
        weight += 1
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    e3va.load_delta(again, tmp_path / 'delta.safetensors')
    assert torch.equal(again.get_submodule(name).weight, weight)
    frozen = build(trunk, dict(type='LoRA', rank=2, roles=('fc1', ), train_input=False), **option)
    assert not frozen.get_submodule(name).weight.requires_grad


def test_grey_images_see_what_grey_rgb_saw():
    stock, tuned = build('vit_timm'), build('vit_timm', 'fixed', in_chans=1)
    tuned.load_state_dict(stock.state_dict(), strict=False)
    grey = torch.randn(2, 1, 71, 90)
    assert distance(stock.eval()(grey.expand(-1, 3, -1, -1)), tuned.eval()(grey)) <= 1e-5


@pytest.mark.parametrize('mode', ['sparse', 'mask'])
def test_gps_leaves_a_first_layer_that_trains_whole(mode):
    """It is no layer of few entries: all of it moves, and what is merged is what was trained."""
    tuned = build('vit_timm', dict(type='GPS', criterion='magnitude', mode=mode), in_chans=4)
    tuned.tuning.hooked = True
    first, x = tuned.patch_embed.proj, torch.randn(2, 4, 71, 90)
    before = first.weight.detach().clone()
    optimizer = torch.optim.SGD([parameter for parameter in tuned.parameters() if parameter.requires_grad], lr=1.)
    projected(tuned(x)).backward()
    optimizer.step()
    assert (first.weight != before).all() and not hasattr(first, 'values')
    assert all(parameter.grad is not None for parameter in tuned.parameters() if parameter.requires_grad)
    tuned.eval()
    if mode == 'sparse':
        assert distance(tuned(x), e3va.merge(copy.deepcopy(tuned)).eval()(x)) <= 1e-5


def test_a_first_layer_that_no_gradient_reaches(caplog):
    """E3VA's trunk runs without gradient from the image on; the ladder's reads the first layer with it."""
    x = torch.randn(2, 4, 64, 64)
    for method, trains in ((dict(type='E3VA', rank=2), False), (dict(type='LST', reduction=4), True)):
        tuned = build('vit_mmpretrain', method, in_channels=4)
        weight = tuned.patch_embed.projection.weight
        projected(tuned(x)).backward()
        assert weight.requires_grad is trains and (weight.grad is not None) is trains


@pytest.mark.parametrize('make', [
    lambda: MODELS.build(dict(type='mmdet.CSPDarknet', deepen_factor=0.33, widen_factor=0.25)),
    lambda: timm.create_model('tresnet_m'), lambda: MODELS.build(dict(
        type='mmdet.FPN', in_channels=[16, 32], out_channels=8, num_outs=2))], ids=['folded', 'folded_4', 'neck'])
def test_rgb_in_more_channels(make):
    """YOLOX and TResNet fold RGB's pixels into 12 and 48 channels; a neck reads no images. Their weights stay."""
    import mmdet.models  # noqa: F401
    model = make()
    head = {id(one) for one in (model.get_classifier().parameters() if hasattr(model, 'get_classifier') else ())}
    e3va.tune(model, 'Fixed')
    assert not [name for name, one in model.named_parameters() if one.requires_grad and id(one) not in head]


def test_twelve_channels_that_a_config_names():
    import mmdet.models  # noqa: F401
    resnet = MODELS.build(dict(type='e3va.Tuned', trunk='mmdet.ResNet', depth=18, in_channels=12, method='Fixed'))
    assert [name for name, one in resnet.named_parameters() if one.requires_grad] == ['conv1.weight']
    with pytest.raises(ValueError, match='the first layer, for images that are not RGB'):
        build('vit_timm', dict(type='Fixed', cache=True), in_chans=4)
