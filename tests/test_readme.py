"""The README's own method, as a newcomer would write it down, and what CONTRIBUTING.md says of methods and rooms."""
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import e3va
from e3va.command.config import load_method
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


DORA = '''
import torch
from torch import nn
from e3va.layers import DeltaLinear
from e3va.methods.base import Method, linears
from e3va.surgery import find, replace

class MyLinear(DeltaLinear):
    """m (W + B A) / |W + B A|, with m = |W|, each row of its own (DoRA)."""
    def __init__(self, old):
        super().__init__(old)
        self.down = nn.Parameter(torch.randn(2, old.in_features))
        self.up = nn.Parameter(torch.zeros(old.out_features, 2))
        self.magnitude = nn.Parameter(torch.empty(old.out_features, 1))
        self.refresh()

    @torch.no_grad()
    def refresh(self):
        self.magnitude.copy_(self.weight.norm(dim=1, keepdim=True))

    def delta(self):
        moved = self.weight + self.up @ self.down
        return self.magnitude * moved / moved.norm(dim=1, keepdim=True) - self.weight

class DoRA(Method):
    mergeable = True

    def apply(self, trunk, parts):
        for name, old, _, _ in linears(trunk, parts, ('fc1', 'fc2')):
            replace(trunk, name, MyLinear(old))

'''


@pytest.mark.parametrize('trunk', ['swin_timm', 'convnext_mmpretrain'])
@pytest.mark.parametrize('refreshed', [True, False])
def test_a_method_made_from_the_trunk_s_values(trunk, refreshed, tmp_path):
    """With the `loaded` of CONTRIBUTING.md it starts at weights that arrive later; without, it does not."""
    loaded, = re.findall(r'```python\n(    def loaded.*?)```', (ROOT / 'CONTRIBUTING.md').read_text(), re.S)
    made = {}
    exec(DORA + (loaded if refreshed else ''), made)
    stock, tuned = pair(trunk, made['DoRA']())
    stock.eval(), tuned.eval()
    away = distance(stock(image(trunk)), tuned(image(trunk)))
    assert away <= 1e-5 if refreshed else away > 1e-5
    torch.nn.init.normal_(next(value for name, value in tuned.named_parameters() if name.endswith('.magnitude')))
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    again = pair(trunk, made['DoRA']())[1]
    again.eval()
    METHODS.register_module(module=made['DoRA'], force=True)
    try:
        e3va.load_delta(again, tmp_path / 'delta.safetensors')          # what was brought is not made anew
    finally:
        METHODS.module_dict.pop('DoRA')
    assert distance(again(image(trunk)), tuned(image(trunk))) == 0


# ---- CONTRIBUTING.md

def test_every_room_is_in_the_tour():
    tour = (ROOT / 'CONTRIBUTING.md').read_text().partition('| room |')[2].partition('The way from')[0]
    own = {path.name for path in (ROOT / 'e3va').iterdir() if path.name[0].isalpha() and path.is_file()}
    own |= {f'{path.parent.name}/' for path in (ROOT / 'e3va').glob('[a-z]*/__init__.py')}
    assert set(re.findall(r'`([a-z0-9]+(?:/|\.py))`', tour)) - {'base.py'} == own


def test_the_way_of_a_run_names_what_is_there():
    way = (ROOT / 'CONTRIBUTING.md').read_text().partition('The way from')[2].partition('## Add a method')[0]
    steps = re.findall(r'`(e3va/\S+\.py)`: ((?:`\w+`(?:, )?)+)', way)
    assert len(steps) > 10
    for file, names in steps:
        text = (ROOT / file).read_text()
        for name in re.findall(r'\w+', names):
            assert re.search(rf'^(def|class) {name}\b|^{name} = ', text, re.M), f'{file} has no {name}'


@pytest.mark.parametrize('name', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text()
    for path, anchor in re.findall(r'\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)', text):
        target = ROOT / (path or name)
        assert target.exists(), path
        if anchor and target.is_file():
            headings = re.findall(r'^#+ (.*)$', target.read_text(), re.M)
            assert anchor in [re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings], anchor
