"""tools/analysis_tools/counts.py: the exact counts of the papers' rows, the reason of each difference, the README."""
import re
from pathlib import Path

import pytest
import yaml
from torch import nn

import e3va
from e3va.cost.spec import parse
from tests.conftest import build, tool

ROOT = Path(__file__).parents[2]
README = ROOT / 'configs/baselines/README.md'
OWN_FOLDERS = ('e3va', 'gps', 'dmlora', 'pear', 'vp_')
counts = tool('analysis_tools/counts.py')

# Worked out from the widths and depths alone, and printed so by the papers (but LoRA in E3VA, and where noted).
EXACT = {
    ('E3VA, 2', 'BitFit'): 201_656, ('E3VA, 1', 'BitFit'): 302_484,
    ('E3VA, 2', 'Norm-Tuning'): 59_392, ('E3VA, 1', 'Norm-Tuning'): 89_088,
    ('E3VA, 2', 'Partial-1'): 12_601_632, ('E3VA, 1', 'Partial-1'): 28_339_632,
    ('E3VA, 2', 'Adapter'): 3_107_328, ('E3VA, 1', 'Adapter'): 4_659_456,
    ('E3VA, 2', 'AdaptFormer'): 3_107_328, ('E3VA, 1', 'AdaptFormer'): 4_659_456,
    ('E3VA, 2', 'LoRand'): 1_203_456, ('E3VA, 2', 'LoRA'): 256 * 12_032, ('E3VA, 1', 'LoRA'): 256 * 18_048,
    ('E3VA, 2', 'E3VA'): 1_195_008, ('E3VA, 1', 'E3VA'): 1_792_512, ('E3VA, 5', 'Standard'): 2_353_536,
    ('E3VA, 2', 'Full'): 86_745_016, ('E3VA, 1', 'Full'): 194_998_164,
    ('Pear, I', 'LoRA'): 294_912, ('Pear, I', 'SSF'): 205_824, ('Pear, I', 'BITFIT'): 102_912,
    ('Pear, I', 'BI-LORA'): 8 * 147_456, ('Pear, I', 'BI-ADAPTFORMER'): 8 * 73_728,
    ('Pear, I', 'ADAPTER-P'): 147_456, ('Pear, I', 'COMPACTER'): 39_168 + 4 ** 3, ('Pear, I', 'MoRA'): 24 * 112 ** 2,
    ('Pear, I', 'VPT-DEEP'): 50 * 768 * 12, ('Pear, I', 'FACT-TT'): 61_440,
    ('DMLoRA, 1', 'RepAdapter'): 221_184 + 18_624, ('DMLoRA, 1', 'Adapter'): 156_768}


@pytest.fixture(scope='module')
def rows():
    return counts.rows()


def test_exact_counts(rows):
    found = {(row['table'], row['row']): row['parameters'] for row in rows}
    assert {key: found[key] for key in EXACT} == EXACT


def test_every_difference_has_its_reason(rows):
    assert all(row['note'] for row in rows if row['difference'] != '0')
    same = [row for row in rows if row['difference'] == '0']
    assert len(same) > len(rows) / 2 and all(row['ours'] == row['printed'] for row in same)


def test_readme_is_what_the_command_prints(rows, monkeypatch, capsys):
    monkeypatch.setattr(counts, 'rows', lambda: rows)
    counts.main(['--markdown'])
    printed = capsys.readouterr().out
    assert printed.count('\n') == len(rows) + 2 and printed in README.read_text()
    counts.main([])
    assert '12,601,632' in capsys.readouterr().out


def test_counts_of_gps(capsys):
    """K entries and a bias for each neuron: in ViT-B/16 12 blocks of 9 x 768, and 768 of the patches. The README has
    what the command prints."""
    several = (1, 7, 15)
    counts.main(['--markdown', '--methods', ','.join(f'gps:k={k}' for k in several)])
    printed = capsys.readouterr().out
    assert set(printed.splitlines()) <= set((ROOT / 'configs/gps/README.md').read_text().splitlines())
    table = [[cell.strip() for cell in line.strip('|\n').split('|')] for line in printed.splitlines()]
    vit = table[0].index('ViT-B/16')
    neurons = 12 * 9 * 768 + 768
    assert [row[vit].partition(' ')[0] for row in table[2:]] == [f'{neurons * (k + 1):,}' for k in several]
    assert table[2][vit] == '167,424 (0.20 %)'


def test_rounding():
    """MB are 2 ** 20 bytes of float32; a half is rounded up, as the papers do (LoRA: exactly 1.125 MB)."""
    trunk = nn.Linear(10, 99)                                           # 1,089 parameters
    for parameters, printed, ours in [(294_912, '1.13 MB', '1.13'), (12_345_678, '9.99 M', '12.35'),
                                      (12_345_678, '9 M', '12'), (5, '0.1 %', '0.5'), (5, '0.12 %', '0.46')]:
        assert str(counts.in_unit(parameters, trunk, printed)) == ours


@pytest.mark.parametrize('method', ['lora', 'ssf', 'fourierft:n=9,init=zero', 'compacter:rank=8', 'vpt_deep:tokens=3',
                                    'e3va:rank=2'])
def test_weightless_counts_are_the_real_ones(method):
    """On a trunk with weights the method trains as many."""
    real = e3va.tune(build('swin_mmdet'), parse(method)[0].method.method)
    with counts.Weightless():
        stock = build('swin_mmdet')
    assert counts.count(stock, method) == e3va.report(real)['trained']


def test_misspelt_row():
    with pytest.raises(ValueError, match='has not the keys row, printed, method'):
        counts.complete(dict(row='LoRA', print='1 M', method='lora'), {}, None, {})


def test_readme_and_metafile_name_every_method_file():
    files = {f'configs/methods/{path.name}' for path in (ROOT / 'configs/methods').glob('*.py')
             if not path.name.startswith(OWN_FOLDERS)}
    links = {(README.parent / link).resolve() for link in re.findall(r'\]\(([^)]*\.py)\)', README.read_text())}
    linked = {str(path.relative_to(ROOT)) for path in links}
    assert linked == files, f'configs/baselines/README.md: add a row with a link for {sorted(files - linked)}, drop ' \
                            f'{sorted(linked - files)}'
    meta = yaml.safe_load(README.with_name('metafile.yml').read_text())
    listed = {model['Config'] for model in meta['Models']}
    assert listed == files, f'configs/baselines/metafile.yml: add to Models {sorted(files - listed)}, drop ' \
                            f'{sorted(listed - files)}'
    used, known = ({model['In Collection'] for model in meta['Models']},
                   {entry['Name'] for entry in meta['Collections']})
    assert used == known, f'configs/baselines/metafile.yml: Collections, In Collection differ in {sorted(used ^ known)}'
