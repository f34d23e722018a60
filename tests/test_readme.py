"""The README's own method, as a newcomer would write it down."""
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import e3va
from e3va.config import load_method
from e3va.registry import METHODS
from tests.conftest import distance, image, pair

ROOT = Path(__file__).parents[1]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The README's files `gain.py` and `gain_method.py` in a folder of their own."""
    text = (ROOT / 'README.md').read_text()
    for name, code in re.findall(r'```python\n# (gain\w*\.py)(.*?)```', text, re.S):
        (tmp_path / name).write_text(f'#{code}')
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    METHODS.module_dict.pop('Gain', None)
    sys.modules.pop('gain', None)


@pytest.mark.parametrize('trunk', ['swin_mmdet', 'vit_mmpretrain', 'convnext_mmpretrain'])
def test_a_method_in_twenty_lines(written, trunk):
    """It starts at the trunk, has one parameter for each output of the MLPs, and merges."""
    method = load_method(str(written / 'gain_method.py')).method
    stock, tuned = pair(trunk, dict(method), stirred=False)
    stock.eval(), tuned.eval()
    x = image(trunk)
    assert distance(stock(x), tuned(x)) == 0
    added = {name: value for name, value in tuned.named_parameters() if value.requires_grad}
    assert added and all(name.endswith('.g') for name in added)
    for value in added.values():
        torch.nn.init.constant_(value, 0.1)
    merged = e3va.merge(tuned)
    assert distance(tuned(x), merged(x)) <= 1e-5 < distance(stock(x), merged(x))
    assert not any(name.endswith('.g') for name in merged.state_dict())


def test_its_command(written):
    """print_config, which reads --method as train.py does."""
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/misc/print_config.py', 'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
         '--method', 'gain_method.py'], cwd=written, env=dict(PYTHONPATH='.', PATH='/usr/bin:/bin'), text=True,
        capture_output=True)
    assert "method=dict(type='Gain')" in done.stdout, done.stderr[-2000:]
    assert "'gain'" in done.stdout.partition('custom_imports')[2][:60]
