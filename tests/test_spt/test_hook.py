"""SPTHook in a runner: what the optimizer holds afterwards, resume, averages, two processes, a detector."""
import pytest
import torch
from mmengine.hooks import Hook

import e3va
from e3va.command.processes import GlooRunner
from e3va.gps.method import selected
from tests.conftest import in_two_processes
from tests.running import (
    BATCH,
    Classifier,
    Interrupt,
    Weights,
    assert_equal,
    finished,
    runner_of,
    state_of,
    without_batch_norm,
)

METHOD = dict(type='SPT', budget=1500, rank=2, step=50, dropout=0., drop_path=0.)
HOOKS = dict(spt=dict(type='e3va.SPTHook'))


class Nothing(Hook):
    pass


def run(folder, watch, method=METHOD, **options):
    return finished(runner_of(folder, lambda: Classifier(method, drop_path_rate=0.), HOOKS, watch, **options))


def test_the_optimizer_follows(tmp_path):
    """It holds what is left, and moments of it alone; the averages have the same names and shapes."""
    runner = run(tmp_path, Nothing(), ema=True, epochs=1)
    groups = runner.optim_wrapper.optimizer.param_groups
    held = {one for group in groups for one in group['params'] if one.requires_grad}
    trained = {parameter for parameter in runner.model.parameters() if parameter.requires_grad}
    assert held == trained
    report = e3va.report(runner.model)
    assert sum(parameter.numel() for parameter in held) == report['trained'] + report['head']
    assert abs(report['trained'] - 1500) < 150 and selected(runner.model.backbone)
    averaged = next(hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model')).module.state_dict()
    assert {name: value.shape for name, value in averaged.items()} == {
        name: value.shape for name, value in runner.model.state_dict().items()}


@pytest.mark.parametrize('stop', [2, 3])
def test_resumes_bit_for_bit(tmp_path, stop):
    """At an epoch's end and inside one; the data are looked at once."""
    whole = state_of(run(tmp_path / 'whole', Nothing(), ema=True))
    assert run(tmp_path / 'part', Interrupt(stop), ema=True) is None
    assert_equal(state_of(run(tmp_path / 'part', Nothing(), ema=True, resume=True)), whole)


def two(rank, folder):
    runner = without_batch_norm(runner_of(
        folder / 'two', lambda: Classifier(METHOD, drop_path_rate=0.), HOOKS, Weights(folder / f'{rank}.pth'), epochs=1,
        kind=GlooRunner, launcher='pytorch', batch=BATCH // 2))
    runner.train()


def test_two_processes(tmp_path):
    """The same selection and the same weights in both."""
    in_two_processes(two, tmp_path)
    one, other = (torch.load(tmp_path / f'{rank}.pth')[-1] for rank in (0, 1))
    assert_equal(one, other)
    assert any(name.endswith('.values') for name in one) and any('.pairs.' in name for name in one)


def test_for_another_method(tmp_path):
    with pytest.raises(ValueError, match='SPTHook selects for SPT, and this trunk is tuned by LoRA'):
        run(tmp_path, Nothing(), method=dict(type='LoRA', rank=2))
