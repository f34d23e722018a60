"""The table of backbones and methods is what the program does today."""
from tests.conftest import tool

support = tool('analysis_tools/support.py')


def test_the_page_is_up_to_date():
    assert support.PAGE.read_text() == support.table(), 'python tools/analysis_tools/support.py --write'
