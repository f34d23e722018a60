"""What README.md, CONTRIBUTING.md and docs/ say: their method, commands, code and links; and the site of them."""
import argparse
import ast
import os
import re
import runpy
import shlex
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
PAGES = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md',
         *(f'docs/{path.name}' for path in sorted((ROOT / 'docs').glob('*.md')))]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The files `gain.py` and `gain_method.py` of docs/add_a_method.md in a folder of their own."""
    text = (ROOT / 'docs/add_a_method.md').read_text()
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


# ---- all pages

@pytest.mark.parametrize('name', PAGES)
def test_links_lead_somewhere(name):
    text = re.sub(r'```.*?```', '', (ROOT / name).read_text(), flags=re.S)
    for path, anchor in re.findall(r'\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)', text):
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), path
        if anchor and target.is_file():
            headings = re.findall(r'^#+ (.*)$', target.read_text(), re.M)
            assert anchor in [re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings], anchor


class Parsed(BaseException):
    """A tool has taken its arguments."""


# What is no tool of the project, and the tools that are no program of Python: their files have to be there.
OTHERS = re.compile(r'source \.venv/bin/activate|pip (install|wheel) .*|ruff check \.|docker build .*|'
                    r'(\.venv/bin/)?python -m mkdocs (build|serve).*|pre-commit install|sbatch .*|'
                    r'python tools/demo/prepare\.py')


def commands():
    """(page, command) of the shell blocks of all pages, each command once."""
    found = {}
    for name in PAGES:
        for block in re.findall(r'```shell\n(.*?)```', (ROOT / name).read_text(), re.S):
            for line in block.replace('\\\n', ' ').splitlines():
                for command in re.split(r' && |;', re.sub(r'\s+#.*|^#.*', '', line)):
                    if command.strip():
                        found.setdefault(command.strip(), name)
    return [(name, command) for command, name in found.items()]


@pytest.mark.parametrize('page, command', commands(), ids=[command for _, command in commands()])
def test_a_command_is_taken(page, command, monkeypatch, capsys):
    """The tool is there and takes these arguments; what it then does, its own test runs on small data."""
    if OTHERS.fullmatch(command):
        return
    words = shlex.split(command)
    while re.fullmatch(r'\w+=.*', words[0]):                            # set for this command
        words.pop(0)
    if words[0] == 'bash':
        assert (ROOT / words[1]).is_file() and words[1].endswith('.sh'), f'{page}: there is no {words[1]}'
        if 'dist_' not in words[1]:
            return
        words = ['python', words[1].replace('dist_', '').replace('.sh', '.py'), *(
            word for word in words[2:] if not word.isdigit())]          # that many processes
    if words[0] == 'e3va' or words[:3] == ['python', '-m', 'e3va']:
        from e3va.command.main import TOOLS
        words = words[words.index('e3va') + 1:]
        if words == ['doctor']:
            return
        words = ['python', f'tools/{TOOLS[words[0]][0]}', *words[1:]]
    assert words[0] == 'python' and (ROOT / words[1]).is_file() and 'parse' in (ROOT / words[1]).read_text(), (
        f'{page}: {command}: what is this? see OTHERS')
    parse = argparse.ArgumentParser.parse_args

    def stop(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
    monkeypatch.setattr(sys, 'argv', [str(ROOT / words[1]), *words[2:]])
    monkeypatch.setattr(sys, 'path', [str((ROOT / words[1]).parent), *sys.path])
    before = set(sys.modules)
    try:
        runpy.run_path(str(ROOT / words[1]), run_name='__main__')
    except Parsed:
        return
    except SystemExit:
        pytest.fail(f'{page}: {command}: {capsys.readouterr().err}')
    finally:                                                            # two folders of tools hold a `page`
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], '__file__', None) or '/').is_relative_to(ROOT / 'tools'):
                del sys.modules[name]
    pytest.fail(f'{page}: {command}: takes no arguments')


@pytest.mark.parametrize('name', PAGES)
def test_code_names_what_is_there(name):
    """Blocks of Python parse, and what they take from e3va is in it."""
    for block in re.findall(r'```python\n(.*?)```', (ROOT / name).read_text(), re.S):
        if block.startswith('    def'):                                 # of a class
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.partition('.')[0] == 'e3va':
                module = __import__(node.module, fromlist=['_'])
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'e3va':
                assert hasattr(e3va, node.attr), ast.unparse(node)


def test_the_site_has_no_warning(tmp_path):
    """Every link and every name of the API; it fetches nothing, and its pages do not either."""
    pytest.importorskip('mkdocs')
    pytest.importorskip('mkdocstrings_handlers.python')
    pytest.importorskip('material')
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--site-dir', tmp_path / 'site'], cwd=ROOT,
        env=dict(os.environ, NO_MKDOCS_2_WARNING='1'), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    fetched = r'<(?:script|img|iframe)[^>]* src="?https?:|<link[^>]*stylesheet[^>]*https?:'
    for page in (tmp_path / 'site').rglob('*.html'):
        assert not re.findall(fetched, page.read_text()), page
    assert 'id="e3va.tuned.tune"' in (tmp_path / 'site/api/index.html').read_text()
