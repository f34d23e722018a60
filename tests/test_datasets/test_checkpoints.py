"""Generated checkpoints load into the stock trunks of mmdet, mmseg, mmpretrain and timm, and mean one network there."""
import runpy
import sys
from pathlib import Path

import mmseg
import pytest
import timm
import torch
from mmdet.models.backbones import SwinTransformer as DetSwin
from mmdet.models.backbones.swin import swin_converter
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner.checkpoint import load_checkpoint
from mmpretrain.registry import MODELS
from mmseg.models.backbones import SwinTransformer as SegSwin
from timm.models import swin_transformer, vision_transformer
from torch.nn.functional import layer_norm

from e3va.datasets.checkpoints import make_checkpoint

TOOL = Path(__file__).parents[2] / 'tools/model_converters/make_checkpoint.py'
SWIN = 'swin_tiny_patch4_window7_224'
SHAPE = dict(embed_dim=24, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), num_classes=10)
MM_SHAPE = dict(embed_dims=24, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
VIT = 'vit_small_patch16_224'
VIT_SHAPE = dict(embed_dim=48, depth=2, num_heads=4, num_classes=10)


@pytest.fixture(autouse=True)
def keep_default_scope():
    before = DefaultScope.get_current_instance()
    init_default_scope('mmpretrain')
    yield
    init_default_scope(before.scope_name if before else 'mmengine')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Format -> file, for one small Swin."""
    folder = tmp_path_factory.mktemp('checkpoints')
    return {format: make_checkpoint(folder / f'{format}.pth', SWIN, format, **SHAPE)
            for format in ('official', 'mmpretrain', 'timm')}


@pytest.fixture(scope='module')
def image():
    return torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def timm_model(arch, file, **shape):
    model = timm.create_model(arch, **shape)
    model.load_state_dict(torch.load(file, weights_only=True), strict=True)
    return model.eval()


@pytest.fixture(scope='module')
def stage_outputs(files, image):
    """What timm's model computes at the end of each stage, NCHW, after a LayerNorm without weights.

    mmdet and mmseg shift the windows of the last stage although one window covers it; timm does so when asked.
    """
    model = timm_model(SWIN, files['timm'], always_partition=True, **SHAPE)
    with torch.no_grad():
        maps = model.forward_intermediates(image, intermediates_only=True)
    return [layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2) for x in maps]


def assert_same_stages(trunk, image, stage_outputs):
    trunk.init_weights()
    with torch.no_grad():
        outputs = trunk(image)
    assert len(outputs) == len(stage_outputs) == 4
    for output, expected in zip(outputs, stage_outputs):
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_official_file_in_mmdet(files, image, stage_outputs):
    init_cfg = ConfigDict(type='Pretrained', checkpoint=str(files['official']))
    trunk = DetSwin(**MM_SHAPE, drop_path_rate=0.0, convert_weights=True, init_cfg=init_cfg)
    assert_same_stages(trunk, image, stage_outputs)
    file = swin_converter(torch.load(files['official'], weights_only=True)['model'])
    for name, value in trunk.state_dict().items():
        if not name.startswith('norm'):  # the norms before the neck have no published weights
            assert torch.equal(value, file.pop(f'backbone.{name}')), name
    assert {name.rpartition('.')[2] for name in file if 'backbone.norm' not in name} == {'attn_mask'}


def test_official_file_in_mmseg_through_its_converter(files, image, stage_outputs, tmp_path, monkeypatch):
    converter = Path(mmseg.__file__).parent / '.mim/tools/model_converters/swin2mmseg.py'
    monkeypatch.setattr(sys, 'argv', [str(converter), str(files['official']), str(tmp_path / 'converted.pth')])
    runpy.run_path(str(converter), run_name='__main__')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'converted.pth'))
    assert_same_stages(SegSwin(**MM_SHAPE, drop_path_rate=0.0, init_cfg=init_cfg), image, stage_outputs)


def test_mmpretrain_file_in_mmseg(files, image, stage_outputs):
    init_cfg = dict(type='Pretrained', checkpoint=str(files['mmpretrain']))
    trunk = SegSwin(**MM_SHAPE, drop_path_rate=0.0, init_cfg=init_cfg, out_indices=(0, 1, 2))
    trunk.init_weights()
    with torch.no_grad():
        for output, expected in zip(trunk(image), stage_outputs):
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('arch, shape, backbone, head, neck', [
    (SWIN, SHAPE, dict(type='SwinTransformer', arch=MM_SHAPE),
     dict(type='LinearClsHead', num_classes=10, in_channels=192), dict(type='GlobalAveragePooling')),
    (VIT, VIT_SHAPE, dict(type='VisionTransformer', arch=dict(
        embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=192)),
     dict(type='VisionTransformerClsHead', num_classes=10, in_channels=48), None),
])
def test_mmpretrain_file_fills_its_classifier_and_computes_what_timm_does(
        tmp_path, image, arch, shape, backbone, head, neck):
    ours = make_checkpoint(tmp_path / 'mm.pth', arch, 'mmpretrain', **shape)
    model = MODELS.build(dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)).eval()
    load_checkpoint(model, str(ours), strict=True)
    theirs = timm_model(arch, make_checkpoint(tmp_path / 'timm.pth', arch, 'timm', **shape), **shape)
    with torch.no_grad():
        torch.testing.assert_close(model(image), theirs(image), rtol=1e-4, atol=1e-5)


def test_layer_scale_of_a_vit_reaches_mmpretrain(tmp_path):
    image = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    shape = dict(embed_dim=48, depth=2, num_heads=4, img_size=56)
    ours = make_checkpoint(tmp_path / 'mm.pth', 'vit_small_patch14_dinov2', 'mmpretrain', **shape)
    model = MODELS.build(dict(
        type='VisionTransformer', img_size=56, patch_size=14, layer_scale_init_value=1e-5,
        arch=dict(embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=192),
        init_cfg=dict(type='Pretrained', checkpoint=str(ours), prefix='backbone.')))
    model.init_weights()
    model.eval()  # returns None
    file = make_checkpoint(tmp_path / 'timm.pth', 'vit_small_patch14_dinov2', 'timm', **shape)
    theirs = timm_model('vit_small_patch14_dinov2', file, **shape)
    with torch.no_grad():
        torch.testing.assert_close(model(image)[0], theirs(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('arch, shape, library', [(SWIN, SHAPE, swin_transformer),
                                                  (VIT, VIT_SHAPE, vision_transformer)])
def test_official_file_in_timm(tmp_path, arch, shape, library):
    official = torch.load(make_checkpoint(tmp_path / 'official.pth', arch, 'official', **shape), weights_only=True)
    model = timm.create_model(arch, **shape)
    model.load_state_dict(library.checkpoint_filter_fn(official, model), strict=True)
    file = torch.load(make_checkpoint(tmp_path / 'timm.pth', arch, 'timm', **shape), weights_only=True)
    assert all(torch.equal(value, file[name]) for name, value in model.state_dict().items())


def test_official_names_and_buffers(files):
    """Spot checks against microsoft/Swin-Transformer, models/swin_transformer.py."""
    official = torch.load(files['official'], weights_only=True)['model']
    assert official['layers.0.downsample.reduction.weight'].shape == (48, 96)
    assert official['head.weight'].shape == (10, 192) and 'layers.3.downsample.norm.weight' not in official
    index = official['layers.1.blocks.0.attn.relative_position_index']
    assert index.shape == (49, 49) and index.dtype == torch.int64
    assert index[0, 0] == 84 and index[0, 48] == 0 and index[48, 0] == 168  # 13 * 6 + 6, then the corners
    masks = {name: mask for name, mask in official.items() if name.endswith('attn_mask')}
    assert list(masks) == [f'layers.{i}.blocks.1.attn_mask' for i in range(3)]  # the last stage is one window
    assert [mask.shape[0] for mask in masks.values()] == [64, 16, 4]
    assert all(set(mask.unique().tolist()) == {0.0, -100.0} for mask in masks.values())


@pytest.mark.parametrize('arch, mm_arch, classes', [
    (SWIN, dict(), 1000),
    ('swin_base_patch4_window12_384.ms_in22k', dict(
        embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window_size=12), 21841),
])
def test_full_size_file_has_the_shapes_of_mmdet(tmp_path, arch, mm_arch, classes):
    path = make_checkpoint(tmp_path / 'swin.pth', arch)
    official = torch.load(path, weights_only=True)['model']
    path.unlink()  # pytest would keep half a gigabyte
    converted = {name: value.shape for name, value in swin_converter(official).items()
                 if 'backbone.norm' not in name and not name.endswith('attn_mask')}
    trunk = DetSwin(**mm_arch).state_dict()
    assert converted == {f'backbone.{name}': value.shape for name, value in trunk.items() if name[:4] != 'norm'}
    assert official['head.weight'].shape[0] == classes


def test_seed_decides_the_values(files, tmp_path):
    again = torch.load(make_checkpoint(tmp_path / 'a.pth', SWIN, 'timm', **SHAPE), weights_only=True)
    other = torch.load(make_checkpoint(tmp_path / 'b.pth', SWIN, 'timm', seed=1, **SHAPE), weights_only=True)
    first = torch.load(files['timm'], weights_only=True)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert 0.015 < first['layers.3.blocks.0.mlp.fc1.weight'].std() < 0.025
    assert (first['norm.weight'] - 1).abs().max() < 0.2


@pytest.mark.parametrize('options, message', [
    (dict(arch='swin_tinny_patch4_window7_224'), 'did you mean swin_tiny_patch4_window7_224'),
    (dict(arch='resnet18'), 'made for Swin and ViT'),
    (dict(format='jax'), 'there are: official, mmpretrain, timm'),
    (dict(seed=-1), 'seed'),
    (dict(depth=2), 'cannot be built'),
    (dict(depths=(2, 2), num_heads=(1,)), 'cannot be built'),
    (dict(arch='vit_base_patch16_clip_224', format='mmpretrain'), 'has no place for norm_pre'),
])
def test_bad_options_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_checkpoint(**{'path': tmp_path / 'a.pth', 'arch': SWIN, **options})
    assert not list(tmp_path.iterdir())


def test_existing_file_is_kept(tmp_path):
    (tmp_path / 'swin.pth').write_text('a download of an hour')
    with pytest.raises(ValueError, match='exists'):
        make_checkpoint(tmp_path / 'swin.pth', SWIN)
    assert (tmp_path / 'swin.pth').read_text() == 'a download of an hour'


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_tool_makes_what_the_function_makes(files, tmp_path, monkeypatch, capsys):
    run_tool(monkeypatch, '--arch', SWIN, '--out', tmp_path / 'new/swin.pth', '--shape', 'embed_dim=24',
             'depths=2,2,2,2', 'num_heads=1,2,4,8', 'num_classes=10')
    made = torch.load(tmp_path / 'new/swin.pth', weights_only=True)['model']
    expected = torch.load(files['official'], weights_only=True)['model']
    assert list(made) == list(expected) and all(torch.equal(made[name], expected[name]) for name in made)
    assert capsys.readouterr().out.startswith(str(tmp_path / 'new/swin.pth'))


@pytest.mark.parametrize('arguments', [
    ('--arch', 'swim'), ('--arch', SWIN, '--format', 'jax'), ('--arch', SWIN, '--shape', 'depths'), ()])
def test_tool_names_bad_input_in_one_line(tmp_path, monkeypatch, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        run_tool(monkeypatch, '--out', tmp_path / 'swin.pth', *arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count('\n') == 1
