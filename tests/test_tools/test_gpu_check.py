"""tools/gpu_check.sh on the CPU: its arguments, its parts, and what is left when one fails or runs over."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = ROOT / 'tools' / 'gpu_check'


def start(out, *arguments, **environment):
    return subprocess.run(
        ['bash', ROOT / 'tools' / 'gpu_check.sh', *([out] if out else []), *map(str, arguments)], cwd='/',
        env=dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', **environment), capture_output=True, text=True)


@pytest.fixture
def room(monkeypatch):
    """Imports from tools/gpu_check, whatever else has such a name."""
    names = [path.stem for path in CHECK.glob('*.py')]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    monkeypatch.syspath_prepend(str(CHECK))
    yield lambda name: __import__(name)
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)


def rows_of(out):
    return [json.loads(line) for line in (out / 'rows.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('arguments, message', [
    ([], 'name a folder for rows and page'),
    (['OUT', 'more'], 'one OUT is taken, and OUT and more are given'),
    (['OUT', '--only', 'speed'], '--only takes environment, tests, figures or training, not speed'),
    (['OUT', '--device', 'tpu'], '--device takes cuda or cpu, not tpu'),
    (['OUT', '--seconds', '0'], '--seconds takes a whole number above 0, not 0'),
    (['OUT', '--wheels', '/nowhere'], '--wheels /nowhere is no folder of tools/offline_wheels.sh'),
    (['OUT', '--weights', '/nowhere'], '--weights /nowhere is no folder'),
    (['OUT', '--only'], '--only needs a value'),
    (['OUT', '--quick'], 'unknown option --quick'),
    (['/proc/1/gpu'], '/proc/1/gpu cannot be written'),
])
def test_a_wrong_argument_is_one_line(tmp_path, arguments, message):
    done = start(None, *[tmp_path / 'OUT' if argument == 'OUT' and len(arguments) < 2 else argument
                         for argument in arguments])
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and done.stderr.startswith('gpu_check: ')
    assert message in done.stderr


def test_without_a_card_that_is_said(tmp_path):
    done = start(tmp_path, CUDA_VISIBLE_DEVICES='')
    assert done.returncode == 2 and '--device cpu checks what a CPU can tell' in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('python, arguments, message', [
    ('2.7', ['--wheels', 'wheels'], 'the wheels are for Python 2.7, and this is Python 3'),
    ('', ['--wheels', 'wheels'], 'failed: install the wheels'),
    ('', [], 'no set-up without a network; there: --wheels FOLDER of offline_wheels.sh')])
def test_where_the_stack_is_missing(tmp_path, python, arguments, message):
    """In a clone without an environment, by a Python that has nothing; the folder's only wheel is damaged."""
    clone, wheels = tmp_path / 'a clone', tmp_path / 'wheels'
    shutil.copytree(CHECK, clone / 'tools' / 'gpu_check')
    shutil.copy(ROOT / 'tools' / 'gpu_check.sh', clone / 'tools')
    (clone / 'tools' / 'setup_env.sh').write_text('exit 1\n')
    wheels.mkdir()
    (wheels / 'machine.txt').write_text(f'python {python or "%d.%d" % sys.version_info[:2]} torch 2.11\n')
    (wheels / 'addict-2.4.0-py3-none-any.whl').write_text('half of it')
    done = subprocess.run(['bash', clone / 'tools' / 'gpu_check.sh', tmp_path / 'out', *arguments], cwd=tmp_path,
                          env=dict(PATH='/usr/bin:/bin', PYTHON=sys._base_executable), capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr


def test_a_part_on_a_cpu(tmp_path):
    """Nothing is installed, and rows have what a table needs."""
    done = start(tmp_path, '--device', 'cpu', '--only', 'environment')
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith('The stack is there: ')
    files = {path.name for path in tmp_path.rglob('*')}
    assert files == {'rows.jsonl', 'gpu.md'}
    rows = rows_of(tmp_path)
    assert all({'part', 'case', 'status', 'device', 'commit', 'command', 'versions'} <= set(row) for row in rows)
    assert {'machine', 'import mmdet.apis', 'mmcv nms'} <= {row['case'] for row in rows if row['status'] == 'done'}
    text = (tmp_path / 'gpu.md').read_text()
    assert '**Not on a GPU**' in text and '| environment | 10 | 0 | 0 |' in text


def test_what_figures_measure(tmp_path, room, monkeypatch):
    """One group, thin: bytes, time and the plan of each method, and their table."""
    monkeypatch.syspath_prepend(str(ROOT))
    cases, figures, record = room('cases'), room('figures'), room('record')
    group = cases.Group('voc_retinanet_swin_l', 1, 'fp32', 'full,fixed,e3va', 0)
    figures.measure(group, 'cpu', record.Record(tmp_path, 'figures', 'cpu', 100))
    rows = {row['method']: row for row in rows_of(tmp_path)}
    assert list(rows) == ['full', 'fixed', 'e3va'] and all(row['status'] == 'done' for row in rows.values())
    assert rows['fixed']['saved_bytes'] < rows['e3va']['saved_bytes'] < rows['full']['saved_bytes']
    monkeypatch.setattr(cases, 'GROUPS', [group])
    monkeypatch.setattr(sys, 'argv', ['predict.py', str(tmp_path), '--device', 'cpu'])
    room('predict').main()
    room('page').write(tmp_path)
    text = (tmp_path / 'gpu.md').read_text()
    assert '### voc_retinanet, batch 1, fp32' in text and (tmp_path / 'plan.png').exists()
    for line in text.splitlines():
        if line.startswith('| e3va |'):
            assert abs(float(line.split('|')[5].strip(' %'))) < 10       # the plan's error


PART = '''import os, sys, time
from record import Record, part_arguments
args = part_arguments(__doc__)
record = Record(args.out, 'environment', args.device, args.seconds)
record.row('first')
with record.attempt('second'):
    raise ValueError('it | broke')
with record.attempt('third', 1000) as there:
    assert not there
'''


@pytest.mark.parametrize('end, code, found', [
    ('', 1, None), ('os._exit(3)', 1, 'ended with status 3'), ('time.sleep(60)', 1, 'stopped after')])
def test_a_part_that_fails_is_a_row_and_the_next_one_follows(tmp_path, room, monkeypatch, end, code, found):
    run = room('run')
    folder, out = tmp_path / 'parts', tmp_path / 'out'
    folder.mkdir()
    for name in ('record.py', 'page.py', 'pictures.py'):
        (folder / name).write_text((CHECK / name).read_text().replace('parents[2]', 'parents[0]'))
    (folder / 'environment.py').write_text(PART + end + '\n')
    (folder / 'last.py').write_text(PART.replace("'environment'", "'training'"))
    monkeypatch.setattr(run, '__file__', str(folder / 'run.py'))
    monkeypatch.setattr(run, 'PARTS', dict(environment=('environment.py', 8, 0, ''), training=('last.py', 8, 5, '')))
    monkeypatch.setattr(run, 'LEAST', 1)
    monkeypatch.setattr(run, 'GRACE', 1)
    assert run.main([str(out), '--device', 'cpu']) == code
    rows = rows_of(out)
    assert [row['status'] for row in rows if row['part'] == 'training'] == ['done', 'failed', 'not run']
    own = [row for row in rows if row['part'] == 'environment']
    assert [row['status'] for row in own] == ['done', 'failed', 'not run', *(['failed'] if found else [])]
    assert not found or own[-1]['why'].startswith(found)
    text = (out / 'gpu.md').read_text()
    assert r'ValueError: it \| broke' in text and 'out of time: 1000 s are needed' in text
    run.main([str(out), '--device', 'cpu', '--only', 'training'])       # measured anew; the other part stays
    assert len(rows_of(out)) == len(rows)
    with open(out / 'rows.jsonl', 'a') as file:
        file.write('{"case": "cut off by a ki')
    assert len(room('record').read(out)) == len(rows)


def test_each_test_is_a_row(tmp_path):
    """By the plugin that suite.py loads."""
    (tmp_path / 'test_some.py').write_text('''
import pytest
def test_passes(): pass
def test_fails(): assert 1 == 2
@pytest.mark.skip(reason='no card')
def test_skips(): pass
''')
    environment = dict(os.environ, PYTHONPATH=str(CHECK), GPU_CHECK_OUT=str(tmp_path), GPU_CHECK_DEVICE='cpu')
    subprocess.run([sys.executable, '-m', 'pytest', '-p', 'outcomes', 'test_some.py'], cwd=tmp_path, env=environment,
                   capture_output=True)
    found = {row['case'].partition('::test_')[2]: row for row in rows_of(tmp_path)}
    assert {case: row['status'] for case, row in found.items()} == dict(passes='done', fails='failed', skips='not run')
    assert found['fails']['why'] == 'assert 1 == 2' and found['skips']['why'] == 'Skipped: no card'


def test_what_does_not_fit_in_is_not_run(tmp_path, room):
    assert room('run').main([str(tmp_path), '--device', 'cpu', '--seconds', '10']) == 0
    assert {row['part'] for row in rows_of(tmp_path)} == {'environment', 'tests', 'figures', 'training'}
    assert {row['status'] for row in rows_of(tmp_path)} == {'not run'}


def test_goals_and_largest_batches_of_a_card(tmp_path, room):
    """The page of made-up rows of a card."""
    common = dict(part='figures', device='NVIDIA Card', versions={'torch': '2.11'}, commit=None, command='')
    group = 'coco_cascade, batch 1, fp32'
    figures = dict(full=(400, 12), fixed=(100, 3), e3va=(105, 4), gps=(300, 9), lora=(250, 8))
    rows = [dict(case=f'{group}: {method}', status='done', method=method, step_ms=ms, saved_bytes=1,
                 peak_bytes=gib * 2**30, device_bytes=(gib + 1) * 2**30, **common)
            for method, (ms, gib) in figures.items()]
    rows.append(dict(case=f'plan of {group}: e3va', status='done', planned_bytes=4.2 * 2**30, planned_saved_bytes=1,
                     **common))
    rows += [dict(case='', status='done', method='e3va', card_gb=card, images=images, most=8, **common)
             for card, images in ((11, 3), (16, 8))]
    (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    room('page').write(tmp_path)
    text = (tmp_path / 'gpu.md').read_text()
    assert text.startswith('# e3va on NVIDIA Card\n') and 'Not on a GPU' not in text
    for line in ('| E3VA exact: step at most 1.10 of Fixed | 1.05 | met |',
                 '| GPS: step at most 1.05 of LoRA | 1.20 | **not met** |',
                 '| memory plan within 10 % of the peak | 5.0 % at most | met |',
                 '| E3VA stream: step at most 1.45 of Fixed | not measured |  |',
                 '| e3va | 3 / 1 | 8+ / 2 |'):
        assert line in text
    assert '--reserve` is to be at least 1.0' in text
