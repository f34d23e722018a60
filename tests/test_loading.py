"""Loads into a tuned trunk: the report, and the refusal of whatever would leave a frozen trunk random."""
import pytest
import torch

from tests.conftest import build


def test_report():
    stock, tuned = build('swin_mmdet'), build('swin_mmdet', 'e3va', seed=1)
    state = {name: value for name, value in stock.state_dict().items() if not name.startswith('norm')}
    tuned.load_state_dict({**state, 'head.weight': torch.zeros(1)}, strict=False)
    report = tuned.tuning.loads[-1]
    assert report.matched == len(state) and report.unexpected == ['head.weight']
    assert report.missing == sorted(f'norm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias'))
    assert report.added == 0 and len(report.added_missing) == 60
    assert f'{len(state)} matched, 8 missing, 1 unexpected' in str(report)
    tuned.load_state_dict(tuned.state_dict())
    assert not tuned.tuning.loads[-1].missing and not tuned.tuning.loads[-1].added_missing


@pytest.mark.parametrize('method', ['full', 'lora', 'e3va', 'fixed'])
def test_no_matching_key(method):
    """Also where strict is off, and for a trunk inside a model and mmengine's own loader."""
    from mmengine.runner.checkpoint import load_state_dict
    tuned = build('swin_mmdet', method)
    with pytest.raises(ValueError, match='no entry of the trunk SwinTransformer.*module.layers.0'):
        tuned.load_state_dict({'module.layers.0': torch.zeros(1)}, strict=False)
    model = torch.nn.Sequential(tuned)
    with pytest.raises(ValueError, match='no entry of the trunk'):
        load_state_dict(model, {'0.backbone.x': torch.zeros(1)})


def test_a_smaller_trunk():
    """A checkpoint of a shallower Swin leaves blocks random: refused for a frozen trunk, left to the stock for Full."""
    small = build('swin_mmdet', depths=(1, 1, 1, 1)).state_dict()
    with pytest.raises(ValueError, match=r'leaves 13 frozen parameters.*stages.1.blocks.1'):
        build('swin_mmdet', 'e3va').load_state_dict(small, strict=False)
    build('swin_mmdet', 'full').load_state_dict(small, strict=False)


def test_other_shapes():
    wide = build('swin_mmdet', embed_dims=48).state_dict()
    with pytest.raises(ValueError, match='other shapes.*instead of'):
        build('swin_mmdet', 'lora').load_state_dict(wide, strict=False)


def test_what_was_loaded_once_may_be_missing_later():
    """A second checkpoint may bring a part (a neck, a later stage)."""
    stock, tuned = build('swin_mmdet'), build('swin_mmdet', 'e3va', seed=1)
    tuned.load_state_dict(stock.state_dict(), strict=False)
    tuned.load_state_dict({name: value for name, value in stock.state_dict().items() if 'stages.3' in name},
                          strict=False)
    assert not tuned.tuning.fresh


def test_init_weights_of_each_library(tmp_path):
    """Weights that arrive by `init_cfg` after the surgery: the trunk equals the file, the adapters keep their start."""
    for name in ('swin_mmdet', 'swin_mmseg', 'swin_mmpretrain', 'vit_mmpretrain', 'swin_timm', 'vit_timm'):
        prefix = 'backbone.' if name == 'swin_mmdet' else ''
        stock = build(name, seed=3)
        path = tmp_path / f'{name}.pth'
        torch.save(dict(state_dict={prefix + key: value for key, value in stock.state_dict().items()}), path)
        for method in ('e3va', 'lora'):
            tuned = build(name, method, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
            if not hasattr(tuned.init_cfg, 'checkpoint'):
                from mmengine.config import ConfigDict
                tuned.init_cfg = ConfigDict(tuned.init_cfg)             # what a config file gives
            added = {key: value.clone() for key, value in tuned.state_dict().items() if key not in tuned.tuning.keys}
            tuned.init_weights()
            state = tuned.state_dict()
            assert all(torch.equal(state[key], value) for key, value in stock.state_dict().items()), name
            assert all(torch.equal(state[key], value) for key, value in added.items()), name


def test_init_weights_without_a_checkpoint():
    """mmdet and mmseg then draw every nn.Linear anew; the adapters' zero start survives, so E3VA still starts exact."""
    from tests.conftest import distance, image
    for name in ('swin_mmdet', 'swin_mmseg', 'swin_mmpretrain', 'vit_mmpretrain'):
        tuned = build(name, 'e3va')
        tuned.init_weights()
        stock = build(name)
        stock.load_state_dict({key: value for key, value in tuned.state_dict().items() if key in tuned.tuning.keys})
        stock.eval(), tuned.eval()                                      # the stock eval() of a Swin gives None
        assert distance(stock(image(name)), tuned(image(name))) == 0


def test_names_that_the_stock_loader_stumbles_over(tmp_path):
    """mmdet with convert_weights=True on an OpenMMLab file, and without it on a file of the official repository."""
    from mmengine.config import ConfigDict
    stock = build('swin_mmdet')
    for prefix, convert in (('backbone.', True), ('', False)):
        path = tmp_path / f'{convert}.pth'
        torch.save({prefix + key: value for key, value in stock.state_dict().items()}, path)
        tuned = build('swin_mmdet', 'e3va', convert_weights=convert)
        tuned.init_cfg = ConfigDict(type='Pretrained', checkpoint=str(path))
        with pytest.raises(ValueError, match=f'{convert}.pth does not hold.*convert_weights'):
            tuned.init_weights()


@pytest.mark.parametrize('was,now,words', [
    ('lora', dict(type='LoRA', rank=5, roles=('q', 'v', 'proj', 'fc1', 'fc2')),
     r'in other shapes: .*\(3, \d+\) instead'),
    ('lora', 'lora_1bit', 'entries of another method than LoRA|lacks .* entries of LoRA'),
    ('lora_1bit', dict(type='LoRA', rank=3), 'entries of another method than LoRA'),
    ('lora', 'e3va', 'entries of another method than E3VA: .*pairs'),
    ('e3va', 'lora', 'entries of another method than LoRA: e3va'),
    ('e3va', 'fixed', 'entries of another method than Fixed: e3va'),
    ('ssf', 'full', 'entries of another method than Full: .*scale'),
    ('lora', 'bitfit', 'entries of another method than BitFit'),
    ('gps', 'lora', 'entries of another method than LoRA'),
    ('mona', 'adaptformer', 'entries of another method than AdaptFormer'),
    ('vpt_deep', 'vpt_shallow', 'entries of .*VPT'),
    (dict(type='LoRA', rank=3, roles=('q', )), dict(type='LoRA', rank=3, roles=('q', 'v')), 'lacks .*pairs')])
@pytest.mark.parametrize('trunk', ['swin_mmdet', 'vit_timm'])
def test_another_method(trunk, was, now, words, tmp_path):
    """What a checkpoint of another method, rank or kind has learned is not lost without a word; both are named."""
    from mmengine.runner import load_checkpoint
    saved = build(trunk, was)
    torch.save(dict(state_dict=saved.state_dict()), tmp_path / 'a.pth')
    model = build(trunk, now, seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=words) as raised:
        load_checkpoint(model, str(tmp_path / 'a.pth'))
    assert f'"type": "{type(saved.tuning.method).__name__}"' in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('was,now', [
    ('lora', dict(type='LoRA', rank=5)), ('lora_1bit', dict(type='LoRA', rank=3)), ('lora', 'fixed'), ('ssf', 'lora'),
    ('gps', 'full')])
def test_another_method_without_its_name(was, now):
    """The same by the entries alone: checkpoints that passed through other hands, or are older."""
    state = {name: value for name, value in build('vit_timm', was).state_dict().items()}
    with pytest.raises(ValueError, match='it says nothing of its method'):
        build('vit_timm', now).load_state_dict(state, strict=False)


def test_the_method_is_in_every_state_dict(tmp_path):
    """Through torch.save, in a model, and after deepcopy; gone from what is merged."""
    import copy
    import json

    import e3va
    from e3va.train.saved_run import recorded_method
    model = torch.nn.ModuleDict(dict(backbone=build('vit_timm', 'lora')))
    torch.save(dict(state_dict=copy.deepcopy(model).state_dict()), tmp_path / 'a.pth')
    found = torch.load(tmp_path / 'a.pth')
    assert json.loads(recorded_method(found))['rank'] == 3
    assert recorded_method(dict(state_dict=e3va.merge(model).state_dict())) is None


@pytest.mark.parametrize('channels', [1, 4])
def test_other_channels(channels):
    """Weights for one or four channels into a trunk for RGB: the channels are named; the other way they are adapted."""
    stock = build('swin_mmdet', in_channels=channels).state_dict()
    with pytest.raises(ValueError, match=f'for images of {channels} channels, and the trunk is built for 3'):
        build('swin_mmdet', 'e3va').load_state_dict(stock, strict=False)
