"""Deltas from strangers: nothing that they name is executed, imported or fetched, by any road."""
import json
import struct
import sys

import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import e3va
from e3va.delta import file as delta_file
from e3va.files import foreign
from e3va.methods import Method, build_method
from tests.conftest import build, pair, tool


@pytest.fixture
def saved(tmp_path):
    """(stock, tuned, path of its delta, with a recorded base)"""
    stock, tuned = pair('vit_mmpretrain', 'lora', stirred=True)
    base, path = tmp_path / 'base.pth', tmp_path / 'delta.safetensors'
    torch.save(stock.state_dict(), base)
    e3va.save_delta(tuned, path, base=str(base))
    return stock, tuned, str(path)


def sign(path, meta):
    """Put other metadata into a delta, with a right checksum, as anybody can: `meta` changes it, or is its text."""
    with safe_open(path, framework='pt') as file:
        text, tensors = file.metadata()['e3va'], {name: file.get_tensor(name) for name in file.keys()}
    if callable(meta):
        found = json.loads(text)
        meta(found)
        text = json.dumps(found)
    else:
        text = meta
    save_file(tensors, path, metadata=dict(e3va=text, sha256=delta_file.fingerprint(tensors, text)))


def roads(saved, tmp_path):
    """All that reads a delta, each as a function without arguments."""
    stock, _, path = saved
    fresh = build('vit_mmpretrain', 'lora', seed=5)
    fresh.load_state_dict(stock.state_dict(), strict=False)
    merge = tool('model_converters/merge_delta.py')
    yield lambda: e3va.load_delta(fresh, path)
    yield lambda: CheckpointLoader.load_checkpoint(f'e3va://{path}')
    yield lambda: load_checkpoint(fresh, f'e3va://{path}')
    yield lambda: merge.main([path, str(tmp_path / 'out.pth')])
    yield lambda: tool('analysis_tools/plot_pear.py').main([path])
    yield lambda: tool('analysis_tools/plot_scales.py').main([path])
    yield lambda: tool('analysis_tools/plot_selection.py').main([path])


def put(where, value):
    """A change of metadata: `value` at a dotted place."""
    def change(meta):
        *above, last = where.split('.')
        for name in above:
            meta = meta.setdefault(name, {})
        meta[last] = value
    return change


CALL = 'os.mkdir'
HOSTILE = [
    put('method', dict(type=CALL, path='made')),
    put('method', dict(type='subprocess.Popen', args=['mkdir', 'made'])),
    put('method.roles', dict(type=CALL, path='made')),
    put('trunk.config', dict(type=CALL, path='made')),
    put('trunk.config.norm_cfg', dict(type=CALL, path='made')),
    put('trunk.config.patch_cfg', dict(conv_type=CALL)),
    put('trunk.config.init_cfg', dict(type=CALL, path='made')),
    put('trunk.config.layer_cfgs', dict(attn_cfg=dict(act_cfg=dict(type='builtins.exec', source='1')))),
    put('trunk.config.type', 'mmpretrain.LoRAModel'),
    put('trunk.config', dict(type='mmpretrain.AutoModelForCausalLM', name_or_path='x', trust_remote_code=True)),
    put('trunk.config', dict(type='mmpretrain.HuggingFaceClassifier', model_name='x')),
    put('trunk.config', dict(type='e3va.TimmTrunk', name='hf-hub:somebody/something')),
    put('trunk.config.type', 'evil_module_of_a_test'),
    put('trunk.config.patch_cfg', dict(conv_type='evil_module_of_a_test'))]


@pytest.mark.parametrize('change', HOSTILE)
def test_nothing_runs(saved, tmp_path, change, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / 'evil_module_of_a_test.py').write_text("import os\nos.mkdir('made')\n")
    sign(saved[2], change)
    for road in roads(saved, tmp_path):
        try:
            road()
        except (ValueError, SystemExit):
            pass
    assert not (tmp_path / 'made').exists() and 'evil_module_of_a_test' not in sys.modules
    assert 'Traceback' not in capsys.readouterr().err


@pytest.mark.parametrize('change,words', [
    (HOSTILE[0], "unknown method 'os.mkdir'"),
    (HOSTILE[3], "trunk.config.type is 'os.mkdir', which is no registered backbone"),
    (HOSTILE[4], "trunk.config.norm_cfg.type is 'os.mkdir'"),
    (HOSTILE[5], "conv_type is 'os.mkdir', a name that would be imported"),
    (put('trunk.config.no_such_option', 3), "trunk's config cannot be built, TypeError"),
    (put('method.rank', 'x'), 'rank must be an integer')])
def test_said(saved, change, words):
    sign(saved[2], change)
    with pytest.raises(ValueError, match=words):
        CheckpointLoader.load_checkpoint(f'e3va://{saved[2]}')


def test_the_recorded_base_is_read_as_data_and_not_fetched(saved, tmp_path, monkeypatch):
    """A pickle that the delta names is refused; a URL is not fetched, until it is given; what lies in the cache is."""
    from tests.test_files.test_checkpoint import Runs
    stock, tuned, path = saved
    torch.save(dict(state_dict={'a': torch.ones(1)}, more=Runs(tmp_path / 'made')), tmp_path / 'evil.pth')
    sign(path, put('base', str(tmp_path / 'evil.pth')))
    fresh = build('vit_mmpretrain', 'lora', seed=5)
    with pytest.raises(ValueError, match='posix.mkdir would be executed'):
        e3va.load_delta(fresh, path)
    with e3va.files.checkpoint.trusting(), pytest.raises(ValueError, match='posix.mkdir would be executed'):
        e3va.load_delta(fresh, path)                                    # the user trusts what he gives himself
    assert not (tmp_path / 'made').exists()

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('torch.hub.download_url_to_file', lambda *args, **options: pytest.fail('fetched'))
    for source in ('https://nowhere.invalid/vit.pth', 's3://bucket/x.pth', 'timm://vit_tiny_patch16_224',
                   f'e3va://{path}?base=https://nowhere.invalid/vit.pth'):
        sign(path, put('base', source))
        with pytest.raises(ValueError, match='nothing that a delta names is fetched unasked'):
            e3va.load_delta(fresh, path)
    sign(path, put('base', f'e3va://{path}'))                           # of itself
    with pytest.raises(ValueError, match='was not found'):
        e3va.load_delta(fresh, path)
    sign(path, put('base', 'https://nowhere.invalid/vit.pth'))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    torch.save(stock.state_dict(), tmp_path / 'hub' / 'checkpoints' / 'vit.pth')
    e3va.load_delta(fresh, path)
    assert all(torch.equal(value, tuned.state_dict()[name]) for name, value in fresh.state_dict().items())


@pytest.mark.parametrize('text', [
    '{}', '[]', 'null', '3', '"text"', '{' * 10, '[' * 100_000 + ']' * 100_000, '{"version": "1"}', '{"version": -1}',
    '{"version": true}', '{"version": 99}', '{"version": 1, "trunk": []}', '{"version": 2, "trunks": []}',
    '{"version": 2, "trunks": [3]}', '{"version": 1, "trunk": {"type": "x"}, "method": null}'])
def test_signed_metadata(saved, text):
    sign(saved[2], text)
    with pytest.raises(ValueError, match='is no delta that this e3va can read'):
        delta_file.read(saved[2])


@pytest.mark.parametrize('change', [
    put('packed', {'layers.0.attn.qkv.pairs.0.up': [1, 3]}), put('packed', {'nothing': [1, 3, 4]}),
    put('packed', {'x': [3, 1, 1]}), put('packed', {'x': 'y'}), put('packed', {'x': [1, -1, 4]}),
    put('packed', []), put('dataset_meta', [1])])
def test_signed_tables(saved, change):
    sign(saved[2], change)
    with pytest.raises(ValueError, match='is no delta that this e3va can read'):
        delta_file.read(saved[2])


@pytest.mark.parametrize('convert,words', [
    (lambda value: value.long(), 'torch.int64 instead of torch.float32'),
    (lambda value: value.bool(), 'torch.bool instead of'),
    (lambda value: value.to(torch.float8_e5m2), 'torch.float8_e5m2 instead of'),
    (lambda value: value * float('nan'), 'NaN or infinite'),
    (lambda value: value + float('inf'), 'NaN or infinite')])
def test_values(saved, convert, words):
    """Refused with the entry's name, and the model keeps its own."""
    stock, _, path = saved
    tensors, meta = delta_file.read(path)
    name = next(iter(tensors))
    delta_file.write(path, {**tensors, name: convert(tensors[name])},
                     {key: meta[key] for key in ('method', 'trunk', 'base', 'dataset_meta')})
    fresh = build('vit_mmpretrain', 'lora', seed=5)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        e3va.load_delta(fresh, path)
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_half_precision_is_taken(saved):
    stock, tuned, path = saved
    tensors, meta = delta_file.read(path)
    delta_file.write(path, {key: value.bfloat16() for key, value in tensors.items()},
                     {key: meta[key] for key in ('method', 'trunk', 'base', 'dataset_meta')})
    fresh = e3va.load_delta(build('vit_mmpretrain', 'lora', seed=5), path)
    for name, value in e3va.delta(fresh).items():
        assert torch.equal(value, tensors[name].bfloat16().float())


class Own(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.fc = nn.Linear(3, width)


def test_a_users_own_classes():
    """Registered classes of the user's package may be named; functions and unregistered ones not."""
    from mmengine.registry import MODELS
    MODELS.register_module(name='OwnTrunkOfATest', module=Own)
    assert foreign.build_trunk(dict(type='OwnTrunkOfATest', width=4)).fc.out_features == 4
    for name in ('tests.test_foreign.Own', 'torch.nn.Linear', 'nn.Linear', 'os', 'mmengine.BaseModel'):
        with pytest.raises(ValueError, match='no registered backbone'):
            foreign.trunk_config(dict(type=name))


@pytest.mark.parametrize('method', ['os.system', 'subprocess.Popen', 'torch.nn.Linear', nn.Linear, 3, ['LoRA']])
def test_what_is_no_method(method):
    with pytest.raises(ValueError, match='method'):
        build_method(dict(type=method) if not isinstance(method, (int, list)) else method)
    assert issubclass(type(build_method('e3va.LoRA')), Method)


def test_header_length_is_not_believed(saved):
    """A file that claims a header of 2**60 bytes."""
    with open(saved[2], 'r+b') as file:
        file.write(struct.pack('<Q', 2 ** 60))
    with pytest.raises(ValueError, match='not a readable delta'):
        delta_file.read(saved[2])
