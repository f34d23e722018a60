"""tools/analysis_tools/choose.py: the best on val by task, and its rows on test."""
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import tool

choose = tool('analysis_tools/choose.py')
METHODS = 'pear,pear_da,pear_sba'


def write(path, rows):
    path.write_text('\n'.join(json.dumps(dict(zip(('task', 'method', 'seed', 'split', 'value'), row))) for row in rows))


VAL = [(task, method, seed, 'val', value + spread)
       for task, values in dict(vtab_dtd=(70, 72, 71), vtab_svhn=(90, 88, 90)).items()
       for method, value in zip(METHODS.split(','), values) for seed, spread in ((0, -3), (1, 3))]
TEST = [('vtab_dtd', 'pear_da', 0, 'test', 69.), ('vtab_dtd', 'pear', 0, 'test', 99.),
        ('vtab_svhn', 'pear', 0, 'test', 87.), ('vtab_svhn', 'pear', 1, 'test', 88.),
        ('vtab_svhn', 'lora', 1, 'val', 9.)]


def test_choice(tmp_path, capsys):
    """By the mean over seeds on val, whatever the test says; on a tie the first named."""
    write(tmp_path / 'rows.jsonl', VAL + TEST)
    choose.main([str(tmp_path / 'rows.jsonl'), '--of', METHODS, '--name', 'Pear'])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row['task'], row['method'], row['chosen'], row['seed'], row['split'], row['value']) for row in rows] == [
        ('vtab_dtd', 'Pear', 'pear_da', 0, 'test', 69.), ('vtab_svhn', 'Pear', 'pear', 0, 'test', 87.),
        ('vtab_svhn', 'Pear', 'pear', 1, 'test', 88.)]


def test_before_the_test(tmp_path, capsys):
    """It names what is left to be tested."""
    write(tmp_path / 'rows.jsonl', VAL)
    choose.main([str(tmp_path / 'rows.jsonl'), '--of', METHODS])
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.splitlines() == ['vtab_dtd: pear_da, not tested yet', 'vtab_svhn: pear, not tested yet']


@pytest.mark.parametrize('rows,words', [
    ([], 'no row of pear, pear_da, pear_sba'), (VAL[:3], 'vtab_dtd: the choice needs every method on val'),
    (VAL + VAL[:1], 'line 13: a second value of vtab_dtd, pear, val, seed 0'),
    ([('vtab_dtd', 'pear', 0, 'train', 1.)], 'line 1: a row has task, method, split')])
def test_wrong_input(tmp_path, capsys, rows, words):
    write(tmp_path / 'rows.jsonl', rows)
    with pytest.raises(SystemExit):
        choose.main([str(tmp_path / 'rows.jsonl'), '--of', METHODS])
    assert words in capsys.readouterr().err


def test_rows_of_the_readme(tmp_path, capsys):
    """The shell function that configs/pear/README.md prints writes the rows that are read here."""
    text = (Path(__file__).parents[2] / 'configs/pear/README.md').read_text()
    row = re.search(r'^row\(\) {.*?^}', text, re.S | re.M)[0]
    for split, folder, value in (('val', 'a_val200', 70.5), ('test', 'a', 69.)):
        (tmp_path / folder / '20250101_000000/vis_data').mkdir(parents=True)
        (tmp_path / folder / '20250101_000000/vis_data/scalars.json').write_text(
            '{"lr": 0.001, "loss": 1.5, "epoch": 100, "step": 1200}\n'
            f'{{"accuracy/top1": 1.0, "step": 50}}\n{{"accuracy/top1": {value}, "data_time": 0.1, "step": 100}}\n')
        subprocess.run(['bash', '-c', f'{row}\nrow pear {split} {folder}'], cwd=tmp_path, check=True)
    choose.main([str(tmp_path / 'results.jsonl'), '--of', 'pear', '--name', 'Pear'])
    assert json.loads(capsys.readouterr().out) == dict(
        task='vtab_dtd', method='Pear', seed=0, split='test', value=69., chosen='pear')
