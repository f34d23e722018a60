"""Killed and resumed runs end as the one that nothing disturbed; and the tool would see it if they did not."""
import signal

import pytest
import torch

from tests.conftest import tool

torture = tool('misc/torture.py')


@pytest.mark.slow
@pytest.mark.parametrize('case', torture.CASES)
def test_every_kind_of_kill(case, capsys):
    assert torture.main(['--cases', case, '--kills', '4', '--seed', '1']) == 0
    said = capsys.readouterr().out
    assert 'bit for bit' in said and f'{case}: 4 runs killed' in said


@pytest.mark.slow
def test_a_run_that_is_resumed_another_way(tmp_path, capsys, monkeypatch):
    """Without the random state the resumed run is another one, and it is said."""
    monkeypatch.setattr('e3va.train.rng_state.set_random_state', lambda state: None)
    assert torture.main(['--cases', 'lora', '--kills', '4']) == 1
    assert 'values differ' in capsys.readouterr().out


def test_differences():
    one = dict(torture.leaves(dict(a=torch.ones(2), b=[1, dict(c=2)], d=None), 'x'))
    assert set(one) == {'x.a', 'x.b.0', 'x.b.1.c', 'x.d'}
    other = {**one, 'x.a': torch.tensor([1., 1. + 2 ** -23]), 'x.b.1.c': 3, 'more': 0}
    assert torture.differences(one, dict(one)) == [] and torture.differences(one, other) == ['more', 'x.a', 'x.b.1.c']


def test_a_process_that_kills_itself():
    """In or behind a call of a function, by the number of the call."""
    class Calls:
        @staticmethod
        def work(told):
            told.append(1)

    for count, want in ((1, []), (2, [1, 1]), (3, [1, 1])):
        killed, told = [], []
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr('os.kill', lambda process, kind: killed.append((kind, list(told))))
            torture.killing(Calls, ['work'], count)()
            for _ in range(count):
                Calls.work(told)
        assert killed[0] == (signal.SIGKILL, want)
        Calls.work = staticmethod(lambda told: told.append(1))
