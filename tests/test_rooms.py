"""The rooms of e3va: imports point backwards along one list, the top has few files, and tests/ mirrors the rooms."""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# In reading order: a file imports from its own room and from those in front of it. docs: CONTRIBUTING.md.
ROOMS = ('__init__ registry compat surgery files loading layers trunks methods highway tuned report delta train gps '
         'spt e2vpt dmlora adamix noah pear models serve datasets command cost __main__').split()
TOP = {'__init__', 'registry', 'compat', 'surgery', 'loading', 'tuned', 'report', '__main__'}
# Tests that no file of their room stands beside, and why.
ALONE = {
    'test_contract.py': 'what every method keeps on every family of trunks',
    'test_export.py': 'models through torch.export and ONNX',
    'test_device.py': 'what holds on a GPU as on a CPU',
    'test_habits.py': 'what no file does',
    'test_imports.py': 'the package as a whole',
    'test_inference.py': 'the inference APIs of the libraries',
    'test_readme.py': 'README.md, CONTRIBUTING.md and docs/',
    'test_rooms.py': 'this file',
    'test_setup.py': 'setup.py',
    'test_train_mode.py': 'what every method holds in eval',
    'test_delta/test_quantised.py': 'deltas of few bits, through all of the room',
    'test_delta/test_versions.py': 'files that earlier versions wrote',
    'test_layers/test_gradcheck.py': 'every custom function, of whichever room',
    'test_highway/test_counts.py': "the paper's tables",
    'test_highway/test_formula.py': 'equations 7 and 8 by hand',
    'test_highway/test_modes.py': 'the modes against each other',
    'test_highway/test_quick_trunk.py': 'a trunk in half precision, in 8 bits, fused',
    'test_trunks/test_families.py': 'all families by one list of facts',
    'test_trunks/test_timm.py': "timm's families: plain classifiers, TimmTrunk, public checkpoints",
}


def room_of(file, package):
    """The room of a file of the package: its folder there, or at the top the file itself."""
    return file.relative_to(package).with_suffix('').parts[0]


def imported(file, package):
    """(line, room) of each import of the package in a file, also of those inside functions."""
    here = file.relative_to(package.parent).with_suffix('').parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            paths = [alias.name.split('.') for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = list(here[:-node.level]) if node.level else []
            start += node.module.split('.') if node.module else []
            paths = [[*start, alias.name] for alias in node.names]
        else:
            continue
        for path in paths:
            if path[0] == package.name:
                room = path[1] if len(path) > 1 else '__init__'
                own = (package / room).is_dir() or (package / f'{room}.py').exists()
                yield node.lineno, room if own else '__init__'          # a public name, `from e3va import tune`


def faults(package):
    """What is out of order in a package, a line each."""
    found = []
    for file in sorted(package.rglob('*.py')):
        room, name = room_of(file, package), file.relative_to(package.parent)
        if room not in ROOMS or file.parent == package and room not in TOP:
            found.append(f'{name}: the top of the package has {", ".join(sorted(TOP))} and the rooms '
                         f'{", ".join(one for one in ROOMS if one not in TOP)}; put it into one of these')
        elif room != '__init__':                                        # which gathers the public names
            found += [f'{name}, line {line}: {room} -> {other} points forward'
                      for line, other in imported(file, package)
                      if other not in ROOMS or ROOMS.index(other) > ROOMS.index(room)]
    return found


def test_imports_point_backwards():
    assert not faults(ROOT / 'e3va'), '\n'.join(faults(ROOT / 'e3va'))


@pytest.mark.parametrize('path, text, fault', [
    ('layers/new.py', 'from ..tuned import tune', 'e3va/layers/new.py, line 1: layers -> tuned points forward'),
    ('layers/new.py', 'import torch\ndef f():\n    from .. import tuned', 'line 3: layers -> tuned points forward'),
    ('layers/new.py', 'import e3va.tuned as tuned', 'line 1: layers -> tuned points forward'),
    ('layers/new.py', 'from e3va.tuned import tune', 'line 1: layers -> tuned points forward'),
    ('layers/new.py', 'from e3va.registry import METHODS\nfrom .low_rank import factor\nfrom e3va import tune', None),
    ('tuned.py', 'from .methods.base import Method\nfrom .layers import DeltaLinear', None),
    ('helpers.py', '', 'e3va/helpers.py: the top of the package has'),
    ('helpers/new.py', '', 'e3va/helpers/new.py: the top of the package has'),
])
def test_a_fault_is_named(tmp_path, path, text, fault):
    for name in ('layers/__init__.py', 'methods/__init__.py', 'methods/base.py', 'registry.py', 'tuned.py', path):
        (tmp_path / 'e3va' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'e3va' / name).write_text(text if name == path else '')
    found = faults(tmp_path / 'e3va')
    assert len(found) == bool(fault) and (not fault or fault in found[0])


def test_tests_mirror_the_rooms():
    """Those of a room and those of a file at the top; tests/test_configs and test_tools are of other folders."""
    tests, package = ROOT / 'tests', ROOT / 'e3va'
    alone = set()
    for file in sorted(tests.rglob('test_*.py')):
        place = file.relative_to(tests)
        room = place.parts[0].removeprefix('test_') if len(place.parts) > 1 else ''
        if room in ('configs', 'tools'):
            continue
        assert not room or (package / room).is_dir(), f'tests/{place}: there is no room e3va/{room}'
        if not (package / room / place.name.removeprefix('test_')).exists():
            alone.add(place.as_posix())
    assert alone == set(ALONE)


@pytest.mark.parametrize('room', ['highway', 'gps', 'spt', 'e2vpt', 'dmlora', 'adamix', 'noah', 'pear'])
def test_the_way_from_a_paper_leads_somewhere(room):
    """What a paper's room says of where its sentences are: files of the room, and names in them."""
    told = ast.get_docstring(ast.parse((ROOT / 'e3va' / room / '__init__.py').read_text()))
    files = {file.stem: file.read_text() for file in (ROOT / 'e3va' / room).glob('[a-z]*.py')}
    named = [(file, name) for file, name in re.findall(r'(?<![\w./])(\w+)\.(\w+)', told) if file in files]
    assert len(named) > 4
    for file, name in named:
        assert re.search(rf'^(def|class) {name}\b|^{name} = ', files[file], re.M), f'{room}/{file}.py has no {name}'
    for path in re.findall(r'(?:tools|tests)/[\w/]+\.py', told):
        assert (ROOT / path).exists(), path


def test_first_lines():
    """Each file of the package and of tools/ begins by saying what it is."""
    for file in sorted([*(ROOT / 'e3va').rglob('*.py'), *(ROOT / 'tools').rglob('*.py')]):
        said = ast.get_docstring(ast.parse(file.read_text()))
        assert said and len(said.partition('\n')[0]) > 10, f'{file.relative_to(ROOT)} does not say what it is'
    for file in sorted((ROOT / 'tools').rglob('*.sh')):
        shebang, said = file.read_text().split('\n')[:2]
        assert shebang == '#!/usr/bin/env bash' and said.startswith('# '), f'{file.name} does not say what it is'
