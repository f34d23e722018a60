"""Checkpoints from strangers: what holds data loads, what would run code does not, and each bad file is one line."""
import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

import e3va
from e3va.files.checkpoint import read_checkpoint, trusting
from tests.conftest import build, tool


class Runs:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path, )


class Reaches:
    """One whose pickle takes getattr, by which mmengine's own allow-list reaches any function."""

    def __reduce__(self):
        return getattr, (getattr, '__self__')


@pytest.mark.parametrize('zipped', [True, False])
def test_code(tmp_path, zipped):
    """Refused with the name of what would run, by our reader and by mmengine's loader; run where the user says so."""
    path, folder = tmp_path / 'evil.pth', tmp_path / 'made'
    torch.save(dict(state_dict={'a': torch.ones(1)}, more=Runs(folder)), path, _use_new_zipfile_serialization=zipped)
    for load in (read_checkpoint, CheckpointLoader.load_checkpoint):
        with pytest.raises(ValueError, match='posix.mkdir would be executed.*--trust-checkpoint'):
            load(str(path))
    assert not folder.exists()
    with trusting():
        assert read_checkpoint(path)['state_dict']['a'] == 1
    assert folder.exists()
    with pytest.raises(ValueError, match='would be executed'):
        read_checkpoint(path)


def test_getattr(tmp_path):
    torch.save(dict(state_dict={}, more=Reaches()), tmp_path / 'evil.pth')
    with pytest.raises(ValueError, match='getattr would be executed'):
        read_checkpoint(tmp_path / 'evil.pth')


def test_a_program_in_the_metadata(tmp_path):
    """mmengine runs `meta.config` of a checkpoint that it resumes from: it does not get there."""
    torch.save(dict(state_dict={'a': torch.ones(1)}, meta=dict(config='import os', epoch=3)), tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth')['meta'] == dict(epoch=3)


def test_what_training_checkpoints_hold(tmp_path):
    """Logs and numpy values of mmengine, the arguments that public weights carry, other formats."""
    log = HistoryBuffer([1., 2.], [1, 1])
    torch.save(dict(
        state_dict={'a': torch.ones(2)}, meta=dict(seed=np.int64(3)), message_hub=dict(log=log, min=HistoryBuffer.min),
        args=argparse.Namespace(lr=1), classes=np.array(['a', None], dtype=object), loss=np.float32(2),
        names=np.array(['x'])), tmp_path / 'a.pth')
    found = read_checkpoint(tmp_path / 'a.pth')
    assert found['message_hub']['log'].mean() == 1.5 and found['args'].lr == 1 and found['meta']['seed'] == 3
    assert found['classes'][0] == 'a' and found['message_hub']['min'] is HistoryBuffer.min
    save_file({'a': torch.ones(2)}, tmp_path / 'a.safetensors')
    assert CheckpointLoader.load_checkpoint(str(tmp_path / 'a.safetensors'))['a'].sum() == 2


BAD = dict(
    empty=(b'', 'is empty'),
    page=(b'<!DOCTYPE html><html>', 'a page of HTML'),
    pointer=(b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n', 'a pointer of git-lfs'),
    noise=(bytes(range(256)) * 4, 'not a readable checkpoint'),
    raw_pickle=(pickle.dumps(Runs('made')), 'not a readable checkpoint|would be executed'),
    a_list=([torch.ones(1)], 'holds a list, and a checkpoint is a dict'),
    none=(None, 'holds a NoneType'),
    tensor=(torch.ones(2), 'holds a Tensor'),
    odd_state=(dict(state_dict=3), 'holds a int'),
    odd_names=({3: torch.ones(1)}, r'names entries by int \(3\)'),
    odd_values=(dict(state_dict={'patch_embed.projection.weight': 'x'}),
                'holds a str and no tensor under|does not hold the weights'))


@pytest.fixture(params=BAD)
def bad(request, tmp_path):
    """(a file that is no checkpoint, what is said of it)"""
    content, words = BAD[request.param]
    path = tmp_path / f'{request.param}.pth'
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    return str(path), words


def test_bad_files_by_every_road(bad):
    """By init_cfg in each library, as the base of a delta, and by a Python user's load."""
    path, words = bad
    for name in ('swin_mmdet', 'swin_mmseg', 'vit_mmpretrain', 'vit_timm'):
        tuned = build(name, 'lora', init_cfg=ConfigDict(type='Pretrained', checkpoint=path))
        with pytest.raises(ValueError, match=words):
            tuned.init_weights()
    stock = build('vit_timm', 'lora')
    e3va.save_delta(stock, f'{path}.safetensors')
    if 'odd_values' not in path:
        with pytest.raises(ValueError, match=words):
            e3va.load_delta(stock, f'{path}.safetensors', base=path)


def test_bad_files_on_the_command_line(bad, tmp_path, capsys):
    """One line on stderr, exit code 2, of the converter and the plots; train.py and test.py load as they do."""
    path, words = bad
    publish, plot = tool('model_converters/publish_delta.py'), tool('analysis_tools/plot_scales.py')
    (tmp_path / 'config.py').write_text(
        "model = dict(type='mmpretrain.ImageClassifier', backbone=dict(type='e3va.Tuned', method=dict(type='LoRA'), "
        "trunk='mmpretrain.VisionTransformer', arch=dict(embed_dims=24, num_layers=1, num_heads=2, "
        'feedforward_channels=48), img_size=32, patch_size=16))')
    for main, arguments in ((publish.main, [str(tmp_path / 'config.py'), path, str(tmp_path / 'out.safetensors')]),
                            (plot.main, [path])):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert 'error: ' in capsys.readouterr().err


@pytest.mark.parametrize('path,words', [('', "named ''"), ('nowhere.pth', 'there is no checkpoint'), ('.', 'a folder')])
def test_no_file(path, words):
    with pytest.raises(ValueError, match=words):
        CheckpointLoader.load_checkpoint(path)
