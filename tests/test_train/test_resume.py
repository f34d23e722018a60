"""Which checkpoint of a folder a run goes on from, and from which it cannot."""
import os
import re
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from e3va.train.resume import check_resumable, method_of, newest_checkpoint

LORA = "model = dict(\n    backbone=dict(method=dict(rank=8, roles=('q', 'v'), type='LoRA'), type='e3va.Tuned'))\n"


def save(path, iteration, time=None, cfg='', **changes):
    """A checkpoint as mmengine writes it, with its log buffers."""
    content = dict(meta=dict(iter=iteration, epoch=1, time=time or f'20250101_{iteration:06}', cfg=cfg),
                   state_dict=dict(weight=torch.ones(1000)), optimizer=dict(state={}, param_groups=[]),
                   message_hub=dict(log_scalars={'train/loss': HistoryBuffer([1.], [1])}))
    content.update(changes)
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return str(path)


@pytest.fixture
def three(tmp_path):
    """A folder with the checkpoints of three epochs; the files' own times say nothing, as after a copy."""
    for epoch in (3, 1, 2):
        save(tmp_path / f'epoch_{epoch}.pth', 10 * epoch)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize('recorded', [
    '', '\0\0\0\0', 'epoch_2.pth', 'epoch_9.pth', '/elsewhere/epoch_2.pth', 's3://bucket/epoch_2.pth', None])
def test_whatever_last_checkpoint_says(three, recorded):
    if recorded is None:
        (three / 'last_checkpoint').unlink()
    else:
        (three / 'last_checkpoint').write_text(recorded)
    assert newest_checkpoint(three) == str(three / 'epoch_3.pth')
    moved = shutil.move(three, f'{three}_moved')
    assert newest_checkpoint(moved) == f'{moved}/epoch_3.pth'


def clear(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize('damage', [cut, clear, lambda path: path.write_bytes(b'')], ids=['cut', 'zeros', 'empty'])
def test_the_newest_that_reads(three, capsys, damage):
    for epoch in (3, 2):
        damage(three / f'epoch_{epoch}.pth')
        assert newest_checkpoint(three) == str(three / f'epoch_{epoch - 1}.pth')
        assert re.search(f'passed over: .*{three}/epoch_{epoch}.pth is (empty|not a readable)', capsys.readouterr().out)
    damage(three / 'epoch_1.pth')
    with pytest.raises(ValueError, match='no checkpoint to go on from: .*epoch_1.pth is .*Give another one'):
        newest_checkpoint(three)


def test_an_older_run_in_the_same_folder(three):
    """The second run has come to its first epoch; what the first one left is further on, and older."""
    save(three / 'epoch_1.pth', 10, time='20250102_000000')
    assert newest_checkpoint(three) == str(three / 'epoch_1.pth')


def test_files_that_are_none_of_a_run(three):
    """The best checkpoint and a published one hold no optimizer; weights from elsewhere are nobody's."""
    save(three / 'best_mIoU_epoch_3.pth', 30, time='20250101_000031', optimizer=None)
    save(three / 'epoch_3-1a2b3c4d.pth', 30, optimizer=None, message_hub=None)
    torch.save(dict(weight=torch.ones(3)), three / 'trunk.pth')
    (three / '.epoch_4.pth').write_bytes(b'hidden')
    assert newest_checkpoint(three) == str(three / 'epoch_3.pth')
    assert newest_checkpoint(three, resumable=False) == str(three / 'best_mIoU_epoch_3.pth')


def test_nothing_to_go_on_from(tmp_path):
    assert newest_checkpoint(tmp_path) is None and newest_checkpoint(tmp_path / 'gone') is None
    torch.save(dict(weight=torch.ones(3)), tmp_path / 'trunk.pth')
    save(tmp_path / 'best_mIoU_epoch_3.pth', 30, optimizer=None)
    assert newest_checkpoint(tmp_path) is None
    path = save(tmp_path / 'epoch_3.pth', 31, optimizer=None)
    with pytest.raises(ValueError, match=r'epoch_3.pth holds no state of the optimizer'):
        newest_checkpoint(tmp_path)
    assert newest_checkpoint(tmp_path, resumable=False) == path


class Code:
    """What only running code restores."""

    def __reduce__(self):
        return os.mkdir, ('ran', )


def test_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / 'epoch_1.pth', 10, extra=Code())
    assert newest_checkpoint(tmp_path) == path                          # whole: the loader asks whether to trust it
    check_resumable(path, Config(dict(model={})))
    path = save(tmp_path / 'epoch_2.pth', 20, cfg="import os\nos.mkdir('ran')\nmodel = dict(backbone=dict("
                                                  "method=dict(type=os.mkdir('ran'), rank=-8)))\n")
    assert method_of(torch.load(path, weights_only=False)) == dict(type=None, rank=-8)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('text, method', [
    (LORA, dict(type='LoRA', rank=8, roles=('q', 'v'))), ("model = dict(backbone=dict(type='ResNet'))", {}),
    ('', None), ('model = dict(', None)])
def test_the_method_of(text, method):
    found = method_of(dict(meta=dict(cfg=text)))
    assert found == method or dict(found, roles=list(found['roles'])) == method


def test_another_method(tmp_path):
    path = save(tmp_path / 'epoch_1.pth', 10, cfg=LORA)
    cfg = Config(dict(model=dict(backbone=dict(type='e3va.Tuned', method=dict(type='E3VA', rank=4)))))
    with pytest.raises(ValueError) as raised:
        check_resumable(path, cfg)
    assert str(raised.value) == (
        f"--resume: {path} is of a run with the method LoRA(rank=8, roles=('q', 'v')), and this one is with the method "
        'E3VA(rank=4): resume with the same method, or start from its weights by --cfg-options load_from=FILE')
    with pytest.raises(ValueError, match='LoRA.*and this one is with no method'):
        check_resumable(path, Config(dict(model=dict(backbone=dict(type='ResNet')))))
    check_resumable(path, Config(dict(model=dict(backbone=dict(method=dict(type='e3va.LoRA', rank=4))))))


def test_other_classes(tmp_path):
    """A folder of runs may have one of other data in it, of the same method and shapes."""
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(meta=dict(dataset_meta=dict(classes=('red', 'blue'))), state_dict={}, optimizer={}), path)

    def cfg(**metainfo):
        return Config(dict(model={}, train_dataloader=dict(dataset=dict(metainfo=metainfo))))
    for fits in (cfg(classes=['red', 'blue']), cfg(), cfg(classes='names.txt'), Config(dict(model={}))):
        check_resumable(str(path), fits)
    with pytest.raises(ValueError, match='is of a run on the classes red, blue, and this one is on blue, red: name an'):
        check_resumable(str(path), cfg(classes=('blue', 'red')))


def test_weights_alone(tmp_path):
    path = save(tmp_path / 'weights.pth', 10, optimizer=None)
    with pytest.raises(ValueError, match='holds meta, state_dict, message_hub and no state of an optimizer'):
        check_resumable(path, Config(dict(model={})))
    cut(tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match='weights.pth is not a readable checkpoint'):
        check_resumable(path, Config(dict(model={})))
    with pytest.raises(ValueError, match='there is no checkpoint gone.pth'):
        check_resumable('gone.pth', Config(dict(model={})))
