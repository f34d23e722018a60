"""tools/analysis_tools/inference.py: what is added, by hand; nothing by what is merged; Table 6; bad input."""
import json
from pathlib import Path

import pytest

from tests.conftest import tool

CONFIGS = dict(small='''
_base_ = 'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py'
model = dict(
    backbone=dict(img_size=32, arch=dict(
        _delete_=True, embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)),
    head=dict(in_channels=24))
''')
pytestmark = pytest.mark.usefixtures('config_folder')
inference = tool('analysis_tools/inference.py')


def test_what_is_added(capsys):
    """An adapter of rank 3 behind each of 2 MLPs: 2 x 24 x 3 weights, 3 + 24 biases; 4 patches and a token go through
    the weights, a multiplication and an addition each."""
    inference.main(['small.py', '--size', '32', '32', '--steps', '1', '--out', 'rows.json', '--methods',
                    "full,adapter:roles=('fc2',),rank=3,dmlora:rank=2,gps,lora:rank=2"])
    rows = {row.pop('method'): row for row in json.loads(Path('rows.json').read_text())}
    adapter = rows.pop("adapter:roles=('fc2',),rank=3")
    assert adapter['added_parameters'] == 2 * (2 * 24 * 3 + 3 + 24)
    assert adapter['added_gflops'] == pytest.approx(2 * 2 * (2 * 24 * 3) * 5 / 1e9)
    assert len(rows) == 4 and all(row['added_parameters'] == row['added_gflops'] == 0 for row in rows.values())
    assert all(row['inference_to_stock'] > 0 and row['batch'] == 2 for row in rows.values())
    assert 'dmlora:rank=2' in capsys.readouterr().out


def test_table6(monkeypatch, capsys):
    monkeypatch.setattr(inference, 'TABLE6', 'small.py')
    inference.main(['--table6', '--size', '32', '32', '--batch', '1', '--steps', '1'])
    found = {cells[0]: cells[1:5] for cells in (
        [cell.strip() for cell in line.strip('│').split('│')] for line in capsys.readouterr().out.splitlines()
        if line.startswith('│'))}
    assert found['dmlora'] == found['full'] == ['0', '0', '0.00', '0']
    assert found['vpt_deep'][1:4:2] == ['0.53 M', '5.60 G'] and found['vpt_deep'][0] == f'{2 * 50 * 24:,}'


@pytest.mark.parametrize('arguments,words', [
    ([], 'give a config, or --table6'), (['small.py', '--table6'], 'give a config, or --table6'),
    (['small.py', '--steps', '0'], '--steps must be at least 1'), (['gone.py'], 'there is no config file'),
    (['small.py', '--methods', 'dmlorra'], "unknown method 'dmlorra'")])
def test_wrong_input(arguments, words, capsys):
    with pytest.raises(SystemExit):
        inference.main(arguments)
    assert words in capsys.readouterr().err
