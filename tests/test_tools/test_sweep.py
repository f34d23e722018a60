"""tools/sweep.py: which runs there are, what is chosen, what goes on after a kill, what a failed run does."""
import json
import textwrap

import pytest
from PIL import Image

from tests.conftest import tool

sweep = tool('sweep.py')
CONFIG = """
default_scope = 'mmpretrain'
sweep = dict(score='accuracy/top1', rates=[1e-4, 1e-2], weight_decays=[0.0])
model = dict(
    type='ImageClassifier',
    backbone=dict(type='VisionTransformer', img_size=32, patch_size=16, arch=dict(
        embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)),
    head=dict(type='VisionTransformerClsHead', num_classes=2, in_channels=24))
data_preprocessor = dict(num_classes=2, mean=[127.5] * 3, std=[127.5] * 3)
steps = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', data_root='images', pipeline=steps))
val_dataloader = test_dataloader = dict(train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, ))
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a task of eight images, in which the test runs; runs are made in the test's own process."""
    for i in range(8):
        folder = tmp_path / 'images' / 'ab'[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (32, 32), (250 * (i % 2), 10 * i, 0)).save(folder / f'{i}.png')
    (tmp_path / 'colours.py').write_text(textwrap.dedent(CONFIG))
    monkeypatch.chdir(tmp_path)
    made = []

    def start(self, run, place):
        made.append((run.method, run.rate, run.decay, run.seed, run.splits))
        run.folder.mkdir(parents=True, exist_ok=True)
        sweep.train(run)
        return True

    monkeypatch.setattr(sweep.Pool, 'start', start)
    return made


def swept(*arguments):
    with pytest.raises(SystemExit) as end:
        sweep.main(['colours.py', '--workers', '1', '--out', 'out', *arguments])
    return end.value.code


def rows():
    with open('out/rows.jsonl') as file:
        return [json.loads(line) for line in file]


def test_the_protocol(place, capsys):
    """Each rate by seed 0 on val alone, then the best with fresh seeds, on val and test; nothing is run twice."""
    assert swept('--methods', 'fixed,lora:rank=2', '--seeds', '1', '2', '--tune') == 0
    choices = [run for run in place if run[3] == 0]
    assert choices == [(method, rate, 0., 0, ('val', )) for method in ('fixed', 'lora:rank=2') for rate in (1e-4, 1e-2)]
    tried = {(row['method'], row['rate']): row['value'] for row in rows() if row['seed'] == 0}
    best = {method: max((1e-4, 1e-2), key=lambda rate: tried[method, rate]) for method in ('fixed', 'lora:rank=2')}
    assert place[4:] == [(method, best[method], 0., seed, ('val', 'test')) for seed in (1, 2)
                         for method in ('fixed', 'lora:rank=2')]
    assert {row['split'] for row in rows() if row['seed'] == 0} == {'val'}
    lora = next(row for row in rows() if row['method'] == 'lora:rank=2')
    assert lora['trained'] == 2 * 2 * (24 * 2 + 2 * 24) and lora['steps'] == 4 and 0 <= lora['value'] <= 100
    table = capsys.readouterr().out
    assert 'lora:rank=2' in table and '384' in table
    count = len(place)
    assert swept('--methods', 'fixed,lora:rank=2', '--seeds', '1', '2', '--tune') == 0 and len(place) == count
    assert swept('--methods', 'fixed', '--seeds', '3') == 0             # without --tune the config's own rate
    assert place[count:] == [('fixed', 1e-3, 0.1, 3, ('val', 'test'))]


def test_a_failed_run_is_named_and_the_others_are_made(place, monkeypatch, capsys):
    def start(self, run, place):
        run.folder.mkdir(parents=True, exist_ok=True)
        if run.method == 'fixed':
            (run.folder / 'log.txt').write_text('step 1\nerror: out of memory\n')
            return False
        run.result.write_text(json.dumps([dict(value=50., rate=run.rate, weight_decay=0., trained=1, saved_mib=0.,
                                               train_s=1.)] * 2))
        return True

    monkeypatch.setattr(sweep.Pool, 'start', start)
    assert swept('--methods', 'fixed,lora', '--seeds', '1') == 1
    out = capsys.readouterr().out
    assert 'failed: colours fixed rate 0.001 seed 1: error: out of memory' in out and '50.00' in out


@pytest.mark.parametrize('arguments, words', [
    (['--methods', 'fixed', '--tune', '--seeds', '0'], 'with --tune seed 0 is that of the choice'),
    (['--methods', 'fixed', '--seeds', '1', '1'], '--seeds takes different numbers'),
    (['--methods', 'fixed', '--workers', '0'], '--workers takes a number of at least 1'),
    (['--methods', 'fixd'], "unknown method 'fixd'; near: fixed"),
    (['--methods', 'lora:rnak=2'], "method LoRA has no option 'rnak'")])
def test_wrong_arguments(place, capsys, arguments, words):
    assert swept(*arguments) not in (0, None)
    assert words in capsys.readouterr().err and not place


@pytest.mark.parametrize('old, new, words', [
    ("sweep = dict(score='accuracy/top1', ", 'sweep = dict(', 'colours.py says no sweep = dict(score='),
    ("data_root='images'", "data_root='gone'", 'colours.py: there is no folder gone')])
def test_a_task_that_cannot_be_run(place, tmp_path, capsys, old, new, words):
    (tmp_path / 'colours.py').write_text(CONFIG.replace(old, new))
    assert swept('--methods', 'fixed') not in (0, None)
    assert words in capsys.readouterr().err and not place
