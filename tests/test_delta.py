"""Deltas: what is in them, what refuses them, and the mm inference APIs that load them."""
import errno
import json
import shutil
import struct
import sys

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader
from safetensors.torch import load_file

import e3va
from e3va.config import load_config
from tests.conftest import SWIN, build, distance, image, pair


@pytest.fixture
def saved(tmp_path):
    """(stock, tuned with moved values, path of its delta)."""
    stock, tuned = pair('swin_mmdet', 'e3va', stirred=True)
    path = tmp_path / 'delta.safetensors'
    e3va.save_delta(tuned, path)
    return stock, tuned, path


def fresh(stock, method='e3va', **changes):
    model = build('swin_mmdet', method, seed=9, **changes)
    model.load_state_dict(stock.state_dict(), strict=False)
    return model


def test_content(saved):
    """The file is plain safetensors with exactly the added entries and the output norms."""
    stock, tuned, path = saved
    names = set(load_file(path))
    added = set(tuned.state_dict()) - set(stock.state_dict())
    assert names == added | {f'norm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias')}
    payload = sum(tensor.numel() * 4 for tensor in load_file(path).values())
    assert e3va.report(tuned)['delta_bytes'] == payload
    assert payload < path.stat().st_size < payload + 32768


def test_wrong_base(saved):
    """Other trunk values are refused, and the message lists what was tried."""
    stock, _, path = saved
    other = build('swin_mmdet', seed=4)
    with pytest.raises(ValueError, match='they are others; the delta records no base'):
        e3va.load_delta(fresh(other), path)
    changed = build('swin_mmdet')
    changed.load_state_dict(stock.state_dict())
    with torch.no_grad():
        changed.stages[2].blocks[0].attn.w_msa.qkv.weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match='was not found'):
        e3va.load_delta(fresh(changed), path)


def test_base_by_argument_and_by_record(saved, tmp_path):
    stock, tuned, path = saved
    base = tmp_path / 'base.pth'
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in stock.state_dict().items()}), base)
    x = image('swin_mmdet')
    empty = build('swin_mmdet', 'e3va', seed=5)
    e3va.load_delta(empty, path, base=str(base))
    assert distance(empty.eval()(x), tuned.eval()(x)) == 0
    e3va.save_delta(tuned, path, base=str(base))
    recorded = build('swin_mmdet', 'e3va', seed=6)
    e3va.load_delta(recorded, path)
    assert distance(recorded.eval()(x), tuned(x)) == 0
    with pytest.raises(ValueError, match='nowhere.pth'):
        e3va.load_delta(build('swin_mmdet', 'e3va', seed=6), path, base=str(tmp_path / 'nowhere.pth'))


def test_entries_that_do_not_fit(saved):
    """Missing, extra and misshapen entries in one message, with what the delta was trained with."""
    stock, _, path = saved
    with pytest.raises(ValueError, match=r'other shapes: .*e3va.*instead of.*E3VA'):
        e3va.load_delta(fresh(stock, dict(type='E3VA', rank=5)), path)
    with pytest.raises(ValueError, match='missing layers|missing stages.*not in the model: e3va'):
        e3va.load_delta(fresh(stock, 'lora'), path)
    with pytest.raises(ValueError, match='not in the model: e3va.stages.3'):
        e3va.load_delta(fresh(stock, out_indices=(0, 1, 2)), path)


def test_untuned_model(saved):
    stock, _, path = saved
    with pytest.raises(ValueError, match='no tuned trunk'):
        e3va.load_delta(stock, path)


@pytest.mark.parametrize('where', [9, 300, -5])
def test_flipped_bit(saved, where):
    """A flipped bit in the header, in the metadata or in the values."""
    stock, _, path = saved
    data = bytearray(path.read_bytes())
    data[where] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match='delta'):
        e3va.load_delta(fresh(stock), path)


def test_truncated_missing_and_foreign(saved, tmp_path):
    stock, _, path = saved
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match='not a readable delta'):
        e3va.load_delta(fresh(stock), path)
    with pytest.raises(ValueError, match='there is no delta file'):
        e3va.load_delta(fresh(stock), tmp_path / 'none.safetensors')
    from safetensors.torch import save_file
    save_file({'a': torch.zeros(1)}, tmp_path / 'foreign.safetensors')
    with pytest.raises(ValueError, match='no delta of e3va'):
        e3va.load_delta(fresh(stock), tmp_path / 'foreign.safetensors')


def test_metadata_is_json(saved):
    """The header names method, trunk, base and hash, for people and other programs."""
    _, _, path = saved
    with open(path, 'rb') as file:
        header = json.loads(file.read(struct.unpack('<Q', file.read(8))[0]))
    meta = json.loads(header['__metadata__']['e3va'])
    assert meta['method'] == dict(type='E3VA', rank=2)
    assert meta['trunk']['type'] == 'SwinTransformer' and len(meta['trunk']['sha256']) == 64


def test_failed_save_leaves_the_old_file(saved, monkeypatch):
    _, tuned, path = saved
    before = path.read_bytes()
    monkeypatch.setattr('os.fsync', lambda handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'No space left')))
    with pytest.raises(ValueError, match='delta.safetensors cannot be written: No space left; what was there'):
        e3va.save_delta(tuned, path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_delta_of_a_timm_classifier(tmp_path):
    """Plain timm: the head is in the delta; tune a new model and load."""
    import timm
    def make():
        torch.manual_seed(0)
        return timm.create_model('vit_tiny_patch16_224', img_size=32, depth=2, embed_dim=24, num_heads=2, num_classes=5)
    model = e3va.tune(make(), dict(type='E3VA', rank=2))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    assert {'head.weight', 'head.bias', 'norm.weight', 'norm.bias'} <= set(e3va.delta(model))
    e3va.save_delta(model, tmp_path / 'd.safetensors')
    again = e3va.load_delta(e3va.tune(make(), dict(type='E3VA', rank=2)), tmp_path / 'd.safetensors')
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), again.eval()(x))


def detector(tmp_path, method):
    """A stock RetinaNet config with a small Swin, tuned, whose trunk comes from a file."""
    stock = build('swin_mmdet', out_indices=(1, 2, 3))
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in stock.state_dict().items()
                                if not name.startswith('norm')}), tmp_path / 'trunk.pth')
    cfg = load_config('mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py')
    cfg.model.backbone = dict(type='e3va.Tuned', trunk='SwinTransformer', method=method, out_indices=(1, 2, 3),
                              init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'trunk.pth')),
                              **SWIN)
    cfg.model.neck.update(in_channels=[48, 96, 192], out_channels=32)
    cfg.model.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1, num_classes=3)
    return cfg


@pytest.mark.parametrize('method', ['E3VA', 'LoRA'])
def test_detector_by_e3va_scheme(tmp_path, method):
    """init_detector on `e3va://FILE`: right trunk, right delta, classes; and the stock detector after merge_delta."""
    from mmdet.apis import inference_detector, init_detector
    from mmengine.registry import MODELS, init_default_scope
    cfg = detector(tmp_path, dict(type=method))
    init_default_scope('mmdet')
    torch.manual_seed(3)
    model = MODELS.build(cfg.model)
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path / 'delta.safetensors'
    e3va.save_delta(model, path, dataset_meta=dict(classes=('a', 'b', 'c'), palette=[(1, 2, 3)] * 3))
    loaded = init_detector(cfg, f'e3va://{path}', device='cpu')
    assert list(loaded.dataset_meta['classes']) == ['a', 'b', 'c']
    wrong = [name for name, value in model.state_dict().items() if not torch.equal(value, loaded.state_dict()[name])]
    assert not wrong
    picture = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    result = inference_detector(loaded, picture)
    assert result.pred_instances.bboxes.shape[-1] == 4

    # Without its base the delta is refused; found by argument it is the same again.
    shutil.move(tmp_path / 'trunk.pth', tmp_path / 'moved.pth')
    with pytest.raises(ValueError, match='was not found.*trunk.pth'):
        CheckpointLoader.load_checkpoint(f'e3va://{path}')
    found = CheckpointLoader.load_checkpoint(f'e3va://{path}?base={tmp_path / "moved.pth"}')
    assert set(found['state_dict']) == set(model.state_dict())


def test_delta_as_a_whole_checkpoint_is_refused(saved):
    """A delta's tensors given as a checkpoint would leave the trunk random: an error that names the way."""
    _, _, path = saved
    with pytest.raises(ValueError, match='leaves .* frozen parameters|no entry of the trunk'):
        build('swin_mmdet', 'e3va', seed=8).load_state_dict(load_file(path), strict=False)


def test_other_options_are_named(tmp_path, monkeypatch):
    """A scale or a seed leaves no trace in the shapes: the delta loads, and says what differs."""
    said = []
    monkeypatch.setattr(sys.modules['e3va.delta'], 'print_log', lambda text, **options: said.append(text))
    tuned = build('vit_timm', dict(type='LoRA', rank=2, alpha=4))
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    for alpha in (4, 8):
        other = build('vit_timm', dict(type='LoRA', rank=2, alpha=alpha))
        other.load_state_dict({name: value for name, value in tuned.state_dict().items()})
        e3va.load_delta(other, tmp_path / 'delta.safetensors')
        assert bool(said) == (alpha == 8)
    assert len(said) == 1 and 'with alpha=4, and the model has alpha=8' in said[0]
