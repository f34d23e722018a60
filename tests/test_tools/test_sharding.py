"""The table of docs/sharding.md is what the formulas give today."""
import pytest

from tests.conftest import tool

sharding = tool('analysis_tools/sharding.py')


def test_the_page_is_up_to_date():
    text = sharding.PAGE.read_text()
    assert f'{sharding.BEGIN}\n{sharding.table()}\n{sharding.END}' in text, (
        'python tools/analysis_tools/sharding.py --write')


def test_by_hand():
    """Four processes, 100 frozen values and 10 trained: each sends three quarters."""
    assert sharding.on_the_wire(100, 10, 4) == 0.75 * 80
    assert sharding.on_the_wire(100, 10, 4, 2) == 0.75 * (80 + 400)
    assert sharding.on_the_wire(100, 10, 1, 2) == 0 and sharding.held(100, 4) == 50


@pytest.mark.parametrize('count, text', [(999_900_000, '999.9 MB'), (13_432_045_568, '13.43 GB'), (0, '0.0 MB')])
def test_sizes(count, text):
    assert sharding.size(count) == text
