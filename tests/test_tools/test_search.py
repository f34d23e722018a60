"""tools/search.py on a supernet that was trained for a moment: the file it writes, resume, bad input."""
import json
import subprocess
import sys
import textwrap

import pytest
from PIL import Image

from e3va.command.config import load_method
from tests.conftest import ROOT, tool
from tests.test_tools.test_sweep import CONFIG

search, train = tool('search.py'), tool('train.py')
METHOD = "method = dict(type='NOAH', sizes=(1, 2))\n"
SMALL = '--score accuracy/top1 --method small.py --rounds 2 --population 3 --select 2 --mutations 1 --crosses 1'.split()


@pytest.fixture(scope='module')
def supernet(tmp_path_factory):
    """A folder with images, a config and a supernet of one epoch."""
    folder = tmp_path_factory.mktemp('search')
    for i in range(8):
        (folder / 'images' / 'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (32, 32), (250 * (i % 2), 10 * i, 0)).save(folder / 'images' / 'ab'[i % 2] / f'{i}.png')
    (folder / 'colours.py').write_text(textwrap.dedent(CONFIG).replace('max_epochs=2', 'max_epochs=1'))
    (folder / 'small.py').write_text(METHOD + (ROOT / 'configs/methods/noah.py').read_text().partition('10))\n')[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, 'argv', ['train.py'])
        train.main(['colours.py', '--method', 'small.py', '--work-dir', 'run'])
    return folder


@pytest.fixture
def place(supernet, monkeypatch):
    monkeypatch.chdir(supernet)


def searched(*arguments, checkpoint='run/epoch_1.pth', budget=900, workers=1):
    search.main(['colours.py', checkpoint, *SMALL, '--budget', str(budget), '--workers', str(workers), *arguments])


def scored(folder):
    return [json.loads(line) for line in (folder / 'scores.jsonl').read_text().splitlines()[1:]]


def test_search(supernet, place, capsys, monkeypatch):
    """The best within the budget as a method file; interrupted, cut and told again, nothing is scored twice."""
    searched('--out', 'whole')
    rows = scored(supernet / 'whole')
    assert len(rows) == len({str(row['subnet']) for row in rows}) == 6
    best = load_method('whole/subnet.py').method
    row = max(rows, key=lambda row: row['value'])
    assert best.type == 'NOAH' and row['subnet'] == [best.subnet[kind] for kind in ('prompt', 'lora', 'adapter')]
    assert 'round 2 of 2: best' in capsys.readouterr().out

    value_of, count = search.value_of, []

    def interrupted(subnet):
        count.append(subnet)
        if len(count) == 3:
            raise KeyboardInterrupt
        return value_of(subnet)
    monkeypatch.setattr(search, 'value_of', interrupted)
    with pytest.raises(SystemExit, match='the same command goes on'):
        searched('--out', 'part')
    with open('part/scores.jsonl', 'a') as file:
        file.write('{"subnet": [[1')                                    # cut by a kill
    searched('--out', 'part')
    assert scored(supernet / 'part') == rows and len(count) == 1 + 6
    one, other = ((supernet / name / 'subnet.py').read_text() for name in ('whole', 'part'))
    assert one == other


def test_the_subnet_trains(supernet, place):
    """Its file is a method like any other."""
    (supernet / 'found.py').write_text("method = dict(type='NOAH', subnet=dict(prompt=[1, 0], lora=[2, 1], "
                                       'adapter=[0, 2]))\n')
    train.main(['colours.py', '--method', 'found.py', '--work-dir', 'alone'])
    assert (supernet / 'alone/epoch_1.pth').exists()


@pytest.mark.parametrize('options, words', [
    (dict(budget=100), 'no subnet has at most budget=100 parameters'), (dict(checkpoint='none.pth'), 'none.pth')])
def test_bad_input(place, capsys, options, words):
    with pytest.raises(SystemExit) as end:
        searched('--out', 'bad', **options)
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_another_supernet(supernet, place, capsys):
    (supernet / 'other').mkdir()
    (supernet / 'other/scores.jsonl').write_text(json.dumps(dict(config='0', weights='1', score='a')) + '\n')
    with pytest.raises(SystemExit):
        searched('--out', 'other')
    assert 'scores of another search (config, weights, score differ)' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        searched('--out', 'metric', '--score', 'accuracy/top7')
    assert 'val gives accuracy/top1' in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes(supernet, place):
    """The same file from two workers, and their bad input as one line."""
    def run(out, *more):
        command = [sys.executable, ROOT / 'tools/search.py', 'colours.py', 'run/epoch_1.pth', *SMALL, '--out', out]
        return subprocess.run([*command, '--budget', '900', '--workers', '2', *more], capture_output=True, text=True)
    searched('--out', 'one')
    assert run('two').returncode == 0
    assert (supernet / 'one/subnet.py').read_text() == (supernet / 'two/subnet.py').read_text()
    wrong = run('wrong', '--score', 'accuracy/top7')
    assert wrong.returncode == 2 and wrong.stderr.strip().endswith('val gives accuracy/top1')
