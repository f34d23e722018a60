"""Whose error it is that ends a tool: bad input is one line, a bug keeps its traceback."""
import pytest

from e3va.command.line import one_line_errors


@pytest.mark.parametrize('folder, one_line', [('tools', True), ('tools/tuning', True), ('elsewhere', False)])
def test_tools_of_a_checkout_beside_an_installed_package(tmp_path, capsys, folder, one_line):
    (tmp_path / 'checkout/e3va').mkdir(parents=True)
    file = tmp_path / 'checkout' / folder / 'tool.py'
    file.parent.mkdir(parents=True)
    file.write_text("raise ValueError('no such folder')\n")
    with pytest.raises(SystemExit if one_line else ValueError), one_line_errors():
        exec(compile(file.read_text(), str(file), 'exec'))
    assert capsys.readouterr().err == ('error: no such folder\n' if one_line else '')
