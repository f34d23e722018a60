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
from e3va.command.config import load_config
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
    monkeypatch.setattr(sys.modules['e3va.delta.load'], 'print_log', lambda text, **options: said.append(text))
    tuned = build('vit_timm', dict(type='LoRA', rank=2, alpha=4))
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    for alpha in (4, 8):
        other = build('vit_timm', dict(type='LoRA', rank=2, alpha=alpha))
        other.load_state_dict({name: value for name, value in tuned.state_dict().items()})
        e3va.load_delta(other, tmp_path / 'delta.safetensors')
        assert bool(said) == (alpha == 8)
    assert len(said) == 1 and 'with alpha=4, and the model has alpha=8' in said[0]


class Towers(torch.nn.Module):
    """Two trunks in one model, as for colour and depth."""

    def __init__(self, first='lora', second='e3va', seed=0):
        super().__init__()
        self.rgb, self.depth = build('vit_timm', first, seed=seed), build('swin_mmdet', second, seed=seed)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x):
        return [*self.rgb(x), *self.depth(x)]


def test_two_tuned_trunks(tmp_path):
    """Each is found by its name: report, delta, hash, merge; what works on one trunk says so."""
    from e3va.tuned import find_tuned
    from tests.conftest import stir
    model, path, x = Towers(), tmp_path / 'delta.safetensors', image('swin_mmdet')
    stir(model)
    parts = e3va.report(model.rgb), e3va.report(model.depth)
    whole = e3va.report(model)
    assert (whole['method'], whole['trunk']) == ('LoRA and E3VA', 'VisionTransformer and SwinTransformer')
    for key in ('trained', 'frozen', 'delta_bytes', 'frozen_bytes'):
        assert whole[key] == sum(part[key] for part in parts)
    assert whole['head'] == 10
    e3va.save_delta(model, path)
    own = {f'{name}.{key}' for name in ('rgb', 'depth') for key in e3va.delta(getattr(model, name))}
    assert set(load_file(path)) == own | {'head.weight', 'head.bias'}

    again = Towers(seed=0)
    e3va.load_delta(again, path)
    assert distance(model.eval()(x), again.eval()(x)) == 0
    for name in ('rgb', 'depth'):
        other = Towers(seed=0)
        with torch.no_grad():
            next(p for p in getattr(other, name).parameters() if not p.requires_grad).add_(1)
        with pytest.raises(ValueError, match='was not found'):
            e3va.load_delta(other, path)
    with pytest.raises(ValueError, match="is of tuned trunks at 'rgb.', 'depth.', and this model has them at ''"):
        e3va.load_delta(build('vit_timm', 'lora'), path)
    with pytest.raises(ValueError, match="has 2 tuned trunks, 'rgb', 'depth', and this works on one"):
        find_tuned(model)
    with pytest.raises(ValueError, match='E3VA cannot be merged'):
        e3va.merge(model)
    both = Towers('lora', 'bitfit')
    stir(both)
    merged = e3va.merge(both.eval())
    stock = Towers(None, None)
    assert set(merged.state_dict()) == set(stock.state_dict()) and not hasattr(merged.rgb, 'tuning')
    assert distance(merged(x), both(x)) <= 1e-5


def test_the_checkpoint_of_two_tuned_trunks(tmp_path):
    """By e3va://: each trunk is rebuilt by its own record."""
    model, path = Towers(), tmp_path / 'delta.safetensors'
    base = tmp_path / 'base.pth'
    torch.save({name: value for prefix, trunk in (('rgb.', model.rgb), ('depth.', model.depth))
                for name, value in ((prefix + key, value) for key, value in trunk.state_dict().items())}, base)
    torch.save(model.depth.state_dict(), tmp_path / 'depth.pth')
    e3va.save_delta(model, path)
    with pytest.raises(ValueError, match='was not found'):
        CheckpointLoader.load_checkpoint(f'e3va://{path}')
    # timm's loader takes a file of its own trunk alone, so the bases are recorded one by one
    from e3va.delta import file as delta_file
    tensors, meta = delta_file.read(path)
    torch.save(model.rgb.state_dict(), tmp_path / 'rgb.pth')
    trunks = [dict(trunk, base=str(tmp_path / f'{trunk["prefix"][:-1]}.pth')) for trunk in meta['trunks']]
    delta_file.write(path, tensors, dict(trunks=trunks, dataset_meta={}))
    found = CheckpointLoader.load_checkpoint(f'e3va://{path}')['state_dict']
    assert set(found) == set(model.state_dict())
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224', 'convnext_atto', 'resnet10t'])
@pytest.mark.parametrize('head', ['none', 'sequence', 'reset'])
def test_a_head_replaced_after_tune(name, head, tmp_path):
    """The delta holds the head that the model has when it is saved, and the report counts it as one."""
    import timm
    model = timm.create_model(name, num_classes=5)
    e3va.tune(model, dict(type='BitFit') if name != 'resnet10t' else dict(type='GPS', criterion='magnitude'))
    trained = e3va.report(model)['trained']
    leaf = 'fc' if name.startswith('resnet') else 'head'
    if head == 'reset':
        model.reset_classifier(3)
    else:
        setattr(model, leaf, torch.nn.Identity() if head == 'none' else torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.LazyLinear(7), torch.nn.BatchNorm1d(7)))
    model.eval()(torch.randn(2, 3, 224, 224))
    report, size = e3va.report(model), {'none': 0, 'reset': 3}.get(head)
    own = [key for key in e3va.delta(model) if key.startswith(f'{leaf}.') and not key.startswith('head.norm')]
    assert bool(own) == (head != 'none') and (head != 'sequence' or any('running_mean' in key for key in own))
    assert report['head'] == sum(p.numel() for key, p in model.named_parameters() if key in own)
    if size == 0 and name != 'convnext_atto':                           # there the head's norm went with it
        assert report['trained'] == trained
    e3va.save_delta(model, tmp_path / 'delta.safetensors')
    assert set(load_file(tmp_path / 'delta.safetensors')) == set(e3va.delta(model))
    e3va.load_delta(model, tmp_path / 'delta.safetensors')


@pytest.mark.parametrize('trunk', ['swin_mmdet', 'vit_timm'])
def test_a_refused_load_changes_nothing(trunk, tmp_path):
    """With the base of another trunk, and with a method's own refusal at the end (GPS: entries of another weight)."""
    stock, tuned = pair(trunk, 'e3va', stirred=True)
    path, other = tmp_path / 'delta.safetensors', tmp_path / 'other.pth'
    e3va.save_delta(tuned, path)
    torch.save(build(trunk, seed=7).state_dict(), other)
    model = build(trunk, 'e3va', seed=9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match='its values are others'):
        e3va.load_delta(model, path, base=str(other))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.tuning.fresh and not model.tuning.loads

    from e3va.delta import file as delta_file
    tuned = pair(trunk, 'gps', stirred=True)[1]
    e3va.save_delta(tuned, path)
    tensors, meta = delta_file.read(path)
    name = next(name for name in tensors if name.endswith('.index'))
    tensors[name] = tensors[name] + 10 ** 6
    delta_file.write(path, tensors, {key: meta[key] for key in ('method', 'trunk', 'base', 'dataset_meta')})
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    with pytest.raises(ValueError, match='belongs to another architecture'):
        e3va.load_delta(tuned, path)
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())
