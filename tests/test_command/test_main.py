"""`e3va COMMAND`: every command is a tool that starts, and the arguments arrive."""
import sys

import pytest

from e3va.command.main import TOOLS, main
from tests.conftest import ROOT


def test_usage(capsys):
    main([])
    out = capsys.readouterr().out
    assert all(f'\n  {name} ' in out for name in [*TOOLS, 'doctor'])


@pytest.mark.parametrize('command', TOOLS)
def test_a_command_is_a_tool(command, capsys, monkeypatch):
    """Its help is the tool's, which is started as `python FILE` would."""
    monkeypatch.setattr(sys, 'argv', [])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    with pytest.raises(SystemExit) as end:
        main([command, '--help'])
    out = capsys.readouterr().out
    assert not end.value.code and f'usage: {TOOLS[command][0].rpartition("/")[2]}' in out
    assert sys.argv == [str(ROOT / 'tools' / TOOLS[command][0]), '--help']


def test_an_unknown_command_is_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        main(['serf'])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count('\n') == 1 and 'no command serf; there are tune, ' in err
