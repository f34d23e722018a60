"""`e3va doctor`: all works here; what does not is one line with what to do."""
import subprocess
import sys

import pytest
import torch

from e3va import compat
from e3va.command import doctor
from tests.conftest import ROOT


def test_what_is_here(capsys):
    assert doctor.main() == 0
    out = capsys.readouterr().out
    assert f'torch {torch.__version__}' in out and 'cores' in out
    assert out.count(' works') >= len(doctor.CHECKS) and 'does not work' not in out


def test_what_is_broken_is_named_with_what_to_do(capsys, monkeypatch):
    def broken():
        raise ImportError('libcudart.so.13: cannot open shared object file\nand more')

    checks = [(name, broken if name == "mmcv's operators" else check, remedy)
              for name, check, remedy in doctor.CHECKS[:4]]
    monkeypatch.setattr(doctor, 'CHECKS', checks)
    monkeypatch.setattr(compat, 'problems', lambda: ['torch 1.0 is too old: install 2.1 or newer'])
    assert doctor.main() == 0                                           # timm's users do without mmcv
    out = capsys.readouterr().out
    assert "mmcv's operators   does not work: libcudart.so.13: cannot open shared object file\n" in out
    assert '-> they are compiled for one torch: bash tools/setup_env.sh' in out and 'too old' in out
    assert 'All of it works' not in out
    monkeypatch.setattr(doctor, 'CHECKS', [('tuning', broken, 'install it')])
    assert doctor.main() == 1


@pytest.mark.parametrize('argument, code', [('--help', 0), ('--fix', 2)])
def test_arguments(capsys, argument, code):
    assert doctor.main([argument]) == code
    assert 'usage: e3va doctor' in ''.join(capsys.readouterr())


def test_without_torch_it_is_one_line():
    """As behind a bare `pip install` of the wheel: what to install, and no traceback."""
    code = ('import sys, importlib.util as u; find = u.find_spec; '
            'u.find_spec = lambda name, *more: None if name == "torch" else find(name, *more); '
            'sys.argv[:] = ["/usr/bin/e3va", "doctor"]; import e3va')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert 'e3va needs torch: install torch first' in done.stderr
