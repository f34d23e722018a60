"""Options that a checkpoint records, against a run's."""
import pytest

from e3va.train.recorded import same_options

OWN = dict(rank=8, share=None, more=1)


def test_what_differs_is_said_in_one_line():
    saved = dict(rank=4, share=None, gone=True)
    with pytest.raises(ValueError) as error:
        same_options(saved, OWN, 'with {theirs}, not {ours}')
    assert str(error.value) == 'with rank=4, gone=True, not rank=8, gone=None'
    with pytest.raises(ValueError, match='^with rank=4 instead of 8, gone=True instead of None$'):
        same_options(saved, OWN, 'with {both}')


@pytest.mark.parametrize('saved', [{}, dict(rank=8), dict(rank=8, share=None)])
def test_the_same_and_none(saved):
    same_options(saved, OWN, 'with {both}')
