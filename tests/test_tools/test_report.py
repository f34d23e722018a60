"""tools/analysis_tools/report.py: which rows count, and the page of them, looked at in a browser."""
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

import e3va
from e3va.pear import plan as pear
from tests.conftest import ROOT, build, tool

pytest.importorskip('plotly')
sys.path.append(str(ROOT / 'tools'))
from reporting import figures, results, runs  # noqa: E402

report = tool('analysis_tools/report.py')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
QUIET = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--hide-scrollbars',
         '--disable-background-networking', '--disable-component-update', '--disable-sync',
         '--virtual-time-budget=3000']
ROWS = [dict(task='cells', method=method, seed=seed, split=split, metric='AP', value=value + seed, saved_mib=saved,
             train_s=saved + 9, trained=trained, rate=1e-3, device='one', commit='abc')
        for method, value, saved, trained in (('fixed', 50., 10, 0), ('lora', 58., 90, 1000), ('e3va', 55., 30, 4000),
                                              ('<b>worse</b>', 40., 95, 9))
        for seed in (1, 2) for split in ('val', 'test')]
ROWS += [dict(task='digits', method=method, seed=0, split='val', rate=rate, metric='top1', value=value, saved_mib=5.)
         for method, rate, value in (('fixed', 1e-3, 80), ('lora', 1e-3, 92), ('lora', 1e-2, 20))]


def view(rows):
    found, = results.views(results_of(rows))
    return found


def results_of(rows):
    return [results.whole(row) for row in rows]


# ---- what counts

def row(value, seed=0, split='val', **more):
    return dict(task='t', method='m', seed=seed, split=split, metric='AP', value=value, **more)


def test_the_setting_with_test_rows_counts():
    """Also where another one was better on val; the seed that chose is none of the result."""
    entry = view([row(70, rate=.1), row(60, rate=.2), row(50, 1, 'val', rate=.2, train_s=3), row(
        40, 1, 'test', rate=.2, train_s=3), row(42, 2, 'test', rate=.2, train_s=5)]).entries['m']
    assert (entry.split, entry.values, entry.val, entry.setting) == ('test', {1: 40, 2: 42}, {1: 50}, {'rate': .2})
    assert entry.mean == 41 and entry.spread == pytest.approx(2 ** 0.5) and entry.costs == {'train_s': pytest.approx(
        11 / 3)} and len(entry.tried) == 2


def test_without_test_rows_the_best_on_val_counts():
    entry = view([row(70, rate=.1), row(60, rate=.2)]).entries['m']
    assert (entry.split, entry.values, entry.setting) == ('val', {0: 70}, {'rate': .1})


def test_val_is_not_compared_with_test():
    """A method that is not through yet is in the table, and in no figure."""
    found = view([row(40, 1, 'test', saved_mib=2), row(42, 1, 'val', saved_mib=2),
                  dict(row(90, saved_mib=1), method='early'), dict(row(41, 1, 'test', saved_mib=3), method='done')])
    assert found.split == 'test' and list(found.compared) == ['m', 'done'] and found.best is found.entries['done']
    drawn, = figures.tradeoffs(found, figures.looks(found.entries))
    assert [trace.get('name') for trace in drawn['data'][1:]] == ['m', 'done']


def test_another_budget_is_another_task():
    found = results.views(results_of([row(1, shown=224, epochs=3), row(2, shown=336, epochs=3)]))
    assert [each.title for each in found] == ['t, 224 px', 't, 336 px']


def test_a_curve_of_a_run_that_diverged(tmp_path):
    """JSON, and so the page, has neither NaN nor Infinity."""
    (tmp_path / 'scalars.json').write_text(
        '{"loss": 2.0, "step": 1}\n{"loss": Infinity, "step": 2}\n{"loss": NaN, "step": 3}\n')
    assert runs.scalars([tmp_path / 'scalars.json']) == {'loss': {1: 2.}}


def test_the_front():
    assert results.front([(1, 5), (2, 4), (3, 7), (3, 6), (4, 7), (0, 1)]) == [(0, 1), (1, 5), (3, 7)]


def test_sixty_methods_are_told_apart():
    """The tables draw the figures' marks too."""
    assert len(set(figures.looks(range(60)).values())) == 60
    css = (ROOT / 'tools/reporting/page.css').read_text()
    assert all(f'i.{mark}' in css or mark in ('circle', 'square') for mark in figures.MARKS)


def test_an_axis_of_decades_keeps_zero():
    points = [('a', 0, 1, None), ('b', 10, 2, None), ('c', 1000, 3, None)]
    drawn = figures.against(points, figures.looks('abc'), 'x', 'y')
    assert [trace['x'] for trace in drawn['data'][1:]] == [[2], [10], [1000]]
    assert drawn['layout']['xaxis']['type'] == 'log' and 'left edge' in drawn['layout']['xaxis']['title']['text']


@pytest.mark.parametrize('content, options, says', [
    ('{"task": "t", "method": "m"}', [], "line 1: a row has task, method, seed and value; KeyError('value')"),
    ('', [], 'there is no row in these files'),
    ('{"task": "t", "method": "m", "value": 1}\n' * 2, [], 'a second value of t, m, test, score, seed 0'),
    ('{"task": "t", "method": "m", "value": 1}', ['--runs', 'gone'], '--runs: there is no folder gone'),
    ('{"task": "t", "method": "m", "value": 1}', ['--runs', '.'], 'no run has left a vis_data/scalars.json'),
    ('{"task": "t", "method": "m", "value": 1}', ['--pictures', 'truth'], 'takes NAME=FOLDER, not truth'),
    ('{"task": "t", "method": "m", "value": 1}', ['--pictures', 'a=.'], 'there is no image in this folder'),
])
def test_wrong_input_is_one_line(tmp_path, monkeypatch, capsys, content, options, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'rows.jsonl').write_text(content)
    with pytest.raises(SystemExit) as end:
        report.main(['rows.jsonl', 'page.html', *options])
    assert end.value.code == 2 and says in capsys.readouterr().err and not (tmp_path / 'page.html').exists()


# ---- the page

@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """A page with all that it can show."""
    folder = tmp_path_factory.mktemp('report')
    (folder / 'rows.jsonl').write_text('\n'.join(map(json.dumps, ROWS)))
    for i, entry in enumerate(ROWS[:8:2]):
        run = folder / f'runs/cells/{entry["method"]}/seed{entry["seed"]}'
        for start, steps in (('1', (1, 2, 3)), ('2', (3, 4))):          # interrupted, and gone on
            (run / start / 'vis_data').mkdir(parents=True)
            (run / start / 'vis_data/scalars.json').write_text(
                '\n'.join(json.dumps({'loss': i + 1 / step, 'coco/bbox_mAP': step / 9, 'step': step}) for step in steps)
                + '\n{"loss": 3')                                       # as a kill leaves it
        (run / 'val_test.json').write_text(json.dumps([entry]))
        (folder / f'runs/old/{i}/vis_data').mkdir(parents=True)         # of the config of before
        (folder / f'runs/old/{i}/vis_data/scalars.json').write_text('{"loss": 1, "step": 1}\n{"loss": 2, "step": 2}')
        (folder / f'runs/old/{i}/val_test.json').write_text(json.dumps([dict(entry, value=entry['value'] + 1)]))
    deltas = dict(pear=dict(type='LoRA', rank=2), gps=dict(type='GPS', k=2, criterion='magnitude'),
                  dmlora=dict(type='DMLoRA', rank=2, branches=2))
    for name, method in deltas.items():
        trunk = build('vit_mmpretrain', method)
        if name == 'pear':
            groups, sizes = pear.alike(trunk, 'global')
            pear.prune(trunk, pear.plan(torch.arange(1., 1 + len(sizes)), groups, sizes, 0.5))
        e3va.save_delta(trunk, folder / f'{name}.safetensors')
    for name, colour in (('truth', 'red'), ('lora', 'blue')):
        (folder / name / 'vis').mkdir(parents=True)
        for i in range(3):
            Image.new('RGB', (80, 60), colour).save(folder / name / f'vis/{i}.png')
    report.main([str(folder / 'rows.jsonl'), str(folder / 'page.html'), '--runs', str(folder / 'runs'), '--learned',
                 *(str(folder / f'{name}.safetensors') for name in deltas), '--pictures', f'truth={folder / "truth"}',
                 f'lora={folder / "lora"}', '--images', '0', '2.jpg'])
    return folder / 'page.html'


def drawn(page):
    return json.loads(page.read_text().partition('id="drawn">')[2].partition('</script>')[0])


def test_what_is_in_it(page):
    text = page.read_text()
    assert text.count('data:image/jpeg;base64,') == 4 and not {'src="http', 'href="http', '<b>worse'} & {
        word for word in ('src="http', 'href="http', '<b>worse') if word in text.replace(plotly(), '')}
    share, costs, curves, maps = (drawn(page)[i:j] for i, j in ((0, 2), (2, 5), (5, 7), (-3, None)))
    assert [trace['y'][0] for trace in share[0]['data'][1:]] == pytest.approx([0, 1, 5 / 8, -10 / 8])
    overview = text.partition('aria-label="all tasks"')[2].partition('</table>')[0]
    assert re.findall('<th scope="row">.*?</i>(.*?)</th>', overview) == ['lora', 'e3va', 'fixed',
                                                                         '&lt;b&gt;worse&lt;/b&gt;']
    assert [len(each['data']) for each in costs] == [5, 5, 5]           # the front, and four methods
    assert costs[0]['data'][0]['x'] == [10, 30, 90] and costs[0]['data'][0]['y'] == [51.5, 56.5, 59.5]
    assert [trace['x'] for trace in curves[0]['data']] == [[1, 2, 3, 4]] * 4
    assert sum(trace['showlegend'] for trace in curves[0]['data']) == 2
    assert [each['data'][0]['type'] for each in maps] == ['heatmap', 'heatmap', 'scatter']
    assert maps[0]['data'][0]['x'] == list('0123') and 'pruned, served by 2 q' in maps[0]['data'][0]['customdata'][0][0]


def plotly():
    from plotly.offline import get_plotlyjs
    return get_plotlyjs()


def browse(file, option):
    """What Chromium prints of a page, 1280 px wide."""
    done = subprocess.run([CHROMIUM, *QUIET, f'--user-data-dir={file.parent / "profile"}', '--window-size=1280,900',
                           option, file.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


LOOK = """<script>
onerror = text => parent.postMessage(text, '*');
document.querySelectorAll('.plot').forEach(draw);
const table = document.querySelector('table[aria-label=cells]');
const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent.replace(/\\W|b/g, '')).join();
const found = [names()];
for (const column of [3, 3, 0]) { table.tHead.rows[0].cells[column].firstChild.click(); found.push(names()); }
setTimeout(() => parent.postMessage([document.documentElement.scrollWidth, innerWidth,
    document.querySelectorAll('.plot .main-svg').length, found.join(' ')].join(), '*'), 500);
</script>"""


browser = pytest.mark.skipif(not CHROMIUM, reason='no Chromium is installed (apt install chromium)')


@browser
def test_it_draws_and_sorts_on_a_phone(page, tmp_path):
    """Nothing is wider than 390 px but in boxes of its own; every figure; clicks on a head sort, down and up."""
    (tmp_path / 'inner.html').write_text(page.read_text() + LOOK)
    (tmp_path / 'outer.html').write_text(
        '<body><iframe src="inner.html" style="width: 390px; height: 800px; border: 0"></iframe><script>'
        'onmessage = said => document.body.dataset.said = said.data</script>')
    said, = re.findall('data-said="(.*?)"', browse(tmp_path / 'outer.html', '--dump-dom'))
    width, inner, figures, *orders = said.split(',', 3)
    assert (width, inner) == ('390', '390') and int(figures) >= len(drawn(page))
    assert orders == ['lora,e3va,fixed,worse worse,lora,e3va,fixed fixed,e3va,lora,worse worse,e3va,fixed,lora']


@browser
def test_it_is_light_and_dark(page, tmp_path):
    """Beside each other in one picture: the papers, and the colours of the methods on both."""
    (tmp_path / 'both.html').write_text('<body style="margin: 0; display: flex">' + ''.join(
        f'<iframe src="{page.as_uri()}#{name}" style="width: 640px; height: 900px; border: 0"></iframe>'
        for name in ('light', 'dark')))
    browse(tmp_path / 'both.html', f'--screenshot={tmp_path / "both.png"}')
    with Image.open(tmp_path / 'both.png') as image:
        for left, paper in ((0, (255, 255, 255)), (640, (20, 24, 29))):
            half = image.convert('RGB').crop((left, 0, left + 640, 900))
            colours = {colour: count for count, colour in half.getcolors(2 ** 24)}
            assert max(colours, key=colours.get) == paper
            assert colours.get((0, 114, 178), 0) > 20                  # the first method's mark
