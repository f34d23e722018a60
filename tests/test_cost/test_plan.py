"""Plans against parameters counted by hand, and against real steps of reduced models of the three libraries."""
import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from e3va.command.config import load_config
from e3va.cost import batch, count
from e3va.cost.halves import trunk_step
from e3va.cost.live import LiveBytes
from e3va.cost.measure import build as build_model
from e3va.cost.plan import Plan, plan
from e3va.cost.saved import saved_bytes
from e3va.cost.spec import parse, stock, tuned
from tests.conftest import build, image, spread, tensors

FLOAT = 4
SWIN = dict(depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8])
CHANGES = dict(
    instances=('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', dict(
        backbone=dict(embed_dims=24, **SWIN), neck=dict(in_channels=[24, 48, 96, 192], out_channels=32),
        rpn_head=dict(in_channels=32, feat_channels=32), roi_head=dict(
            bbox_roi_extractor=dict(out_channels=32), bbox_head=dict(in_channels=32, fc_out_channels=32),
            mask_roi_extractor=dict(out_channels=32),
            mask_head=dict(num_convs=1, in_channels=32, conv_out_channels=32)))),
    dense=('mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py', dict(
        backbone=dict(embed_dims=24, **SWIN), neck=dict(in_channels=[48, 96, 192], out_channels=32),
        bbox_head=dict(in_channels=32, feat_channels=32))),
    semantic=('mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', dict(
        backbone=dict(embed_dims=24, **SWIN), decode_head=dict(in_channels=[24, 48, 96, 192], channels=32),
        auxiliary_head=dict(in_channels=96, channels=32))),
    classification=('mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k-384px.py', dict(
        backbone=dict(img_size=64, arch=dict(
            _delete_=True, embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)),
        head=dict(in_channels=24))),
    small=('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', dict(
        backbone=dict(arch=dict(_delete_=True, embed_dims=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8])),
        head=dict(in_channels=192))))


def reduced(name):
    """A stock config of reduced width."""
    file, model = CHANGES[name]
    cfg = load_config(file)
    cfg.merge_from_dict(dict(model=copy.deepcopy(model)))
    return cfg


def real(name, each, size, images, dtype=None):
    """Bytes of a real step."""
    cfg = stock(reduced(name))
    init_default_scope(cfg.default_scope)
    config = tuned(cfg, each).model
    batch.fix_size(config, size)
    return count.training(build_model(config), batch.generate(cfg, size, images), dtype)


def test_arithmetic():
    """A line through two batches, and the peak in the part that has the most."""
    each = Plan('x', weights=100, gradients=10, moments=20, first=2, counted=dict(
        saved=(50, 20, 0), images=(5, 5, 0), trunk_forward=(30, 30, 0), rest_forward=(80, 10, 0),
        rest_backward=(60, 15, 0), trunk_backward=(10, 1, 0)))
    assert [each.saved(images) for images in (2, 3, 5)] == [50, 70, 110]
    # heads take 30 beside what is saved
    assert [each.peak(images) for images in (2, 3, 5)] == [100 + 20 + saved + 30 for saved in (50, 70, 110)]
    assert [each.workspace(images) for images in (2, 3, 5)] == [30, 30, 30]
    assert [each.largest(room) for room in (199, 200, 219, 220, 260)] == [0, 2, 2, 3, 5]
    # where little else is there, the update has the most: gradients, and as much for the roots of the moments
    small = Plan('x', 100, 40, 80, 1, dict.fromkeys(each.counted, (41, 1, 0)))
    assert small.peak(1) == 100 + 80 + 2 * 40


def test_parameters_by_hand():
    """A ViT of two layers on 64x64 with patches of 16: its classifier trains under Fixed, adapters of LoRA besides."""
    size, (fixed, lora) = plan(reduced('classification'), parse('fixed,lora:rank=3'), (64, 64))
    c, f, tokens, classes = 24, 48, 17, 1000
    layer = 4 * c + (3 * c * c + 3 * c) + (c * c + c) + (f * c + f) + (c * f + c)
    weights = (3 * 16 * 16 * c + c) + c + tokens * c + 2 * layer + 2 * c
    head = classes * c + classes
    assert size == (64, 64) and fixed.first == 1
    assert fixed.gradients == FLOAT * head and fixed.moments == 2 * fixed.gradients
    buffers = 2 * 3 * FLOAT                                             # the preprocessor's mean and deviation
    assert fixed.weights == FLOAT * (weights + head) + buffers
    added = 2 * 2 * (3 * c + c * 3)                                     # q and v of each layer
    assert lora.gradients == FLOAT * (head + added) and lora.weights == fixed.weights + FLOAT * added


@pytest.mark.parametrize('trunk,method', spread(0, [
    'full', 'fixed', 'e3va', 'e3va_stream', 'e3va_int8_trunk', 'dmlora']))
def test_a_trunk_on_fake_tensors_is_the_real_one(trunk, method):
    """Bytes without values are those of a real forward and backward, to the last one."""
    module = build(trunk, method).train()
    got = trunk_step(module, image(trunk).shape, None)
    assert all(parameter.grad is None for parameter in module.parameters())
    module.tuning.hooked = True
    x, outs = image(trunk), []
    with LiveBytes() as live:
        x = x.clone()
        saved = saved_bytes(lambda: outs.append(module(x)), module)
        outs = tensors(outs)
        assert got['maps'] == [(tuple(out.shape), out.dtype, out.requires_grad) for out in outs]
        assert got['sizes'] == [out.untyped_storage().nbytes() for out in outs]
        assert got['forward'] == live.peak
        maps = sum(size for size, kept in zip(got['sizes'], got['kept']) if not kept)
        assert live.current == got['alive'] + maps
        x = None
        assert live.current == got['ready'] + maps
        trained = [out for out in outs if out.requires_grad]
        live.peak, outs = live.current, None
        torch.autograd.backward(trained, [torch.ones_like(out) for out in trained])
    assert saved == got['saved']
    # here the maps stay until the end
    assert got['backward'] <= live.peak <= got['backward'] + maps


ALL = 'full,e3va:rank=2,e3va:mode=stream'


@pytest.mark.parametrize('name, size, methods', [
    ('instances', (96, 128), ALL), ('dense', (72, 104), 'full,e3va:rank=2'),
    ('semantic', (64, 96), 'full,e3va:mode=stream'), ('classification', (64, 64), ALL)])
def test_agrees_with_real_steps(name, size, methods, monkeypatch):
    """All parts within 10 % of a real step's, also at a batch that was not counted."""
    monkeypatch.setattr(batch, 'OBJECTS', 128)                          # of few, an image's heads draw few or many
    specs = parse(methods)
    given, plans = plan(reduced(name), specs, size, objects=128)
    assert given == size and [each.label for each in plans] == [each.label for each in specs]
    for each, got in zip(specs, plans):
        assert got.first == (2 if name == 'semantic' else 1)            # its pooled maps have one value a channel
        true = real(name, each, size, 4)
        assert got.saved(4) == pytest.approx(true['saved_bytes'], rel=0.1)
        # the CPU updates one tensor after another
        update = got.weights + got.moments + 2 * got.gradients
        assert got.peak(4) == pytest.approx(max(true['peak_bytes'], update), rel=0.1)
        assert got.weights + got.gradients + got.moments == pytest.approx(true['kept_bytes'], rel=0.02)   # buffers
        assert got.workspace(4) >= 0


def test_a_share_of_the_images():
    """Of 4 images one's gradient goes through the trunk, of 5 two's at most: whole numbers, which no line goes through.
    """
    spec, = parse('lora:backward=0.25')
    size, (got, ) = plan(reduced('dense'), [spec], (64, 96))
    assert got.share == 0.25
    for images in (1, 4, 6):
        assert got.saved(images) == pytest.approx(real('dense', spec, size, images)['saved_bytes'], rel=0.02)


def test_mixed_precision():
    size, (got, ) = plan(reduced('dense'), parse('e3va:rank=2'), (64, 96), 'bf16')
    true = real('dense', *parse('e3va:rank=2'), size, 1, torch.bfloat16)
    assert got.saved(1) == pytest.approx(true['saved_bytes'], rel=0.1)
    assert got.saved(1) < plan(reduced('dense'), parse('e3va:rank=2'), size)[1][0].saved(1)


def test_many_boxes_fill_the_heads():
    few, many = (plan(reduced('instances'), parse('fixed'), (64, 96), objects=n)[1][0].saved(1) for n in (8, 128))
    # 120 positives more at most: features and maps of the mask head's five layers and its loss, 32 channels each
    assert 1.1 * few < many < few + FLOAT * 120 * (32 * 4 * 14 * 14 + 80 * 5 * 28 * 28)


@pytest.mark.parametrize('name, options, message', [
    ('dense', dict(size=(0, 32)), '--size must be at least 1, not 0'),
    ('instances', dict(objects=0), '--objects must be at least 1, not 0'),
    ('small', dict(size=(32, 32)), 'full cannot train at 32x32, batch 2: AssertionError')])
def test_what_cannot_be_planned(name, options, message):
    with pytest.raises(ValueError, match=message):
        plan(reduced(name), parse('full'), **options)


def test_other_models():
    with pytest.raises(ValueError, match='which this config does not have'):
        plan(Config(dict(default_scope='mmdet', model=dict(type='X'))), parse('full'))
