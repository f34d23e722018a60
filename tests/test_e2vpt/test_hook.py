"""E2VPTHook in a runner: what starts again, resume at every boundary, two processes, what it refuses."""
import pytest
import torch
from mmengine.hooks import Hook

from e3va.command.processes import GlooRunner
from e3va.e2vpt.hook import E2VPTHook
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

METHOD = dict(type='E2VPT', tokens=4, key_values=2, segments=4)
END = 4                                                                 # iterations of a stage of two epochs


class States(Hook):
    """Weights, averages and rate in front of each step."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.rows = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        state = {name: value.clone() for name, value in runner.model.state_dict().items()}
        self.rows.append((state, runner.optim_wrapper.get_lr()['lr'][0], len(runner.optim_wrapper.optimizer.state)))


def run(folder, watch, method=METHOD, epochs=2, hook=None, **options):
    hooks = dict(e2vpt=dict(type='e3va.E2VPTHook', tokens=0.5, segments=0.25, **(hook or {})))
    return runner_of(folder, lambda: Classifier(method), hooks, watch, epochs=epochs, **options)


def test_rewinding(tmp_path):
    """Behind the first stage all that trains is as at the start, but for what is cut; rates and moments start again."""
    watch = States()
    runner = finished(run(tmp_path, watch, ema=True))
    assert len(watch.rows) == 2 * END
    (first, _, none), (again, _, empty) = watch.rows[0], watch.rows[END]
    assert none == empty == 0 and watch.rows[END - 1][2] > 0
    rates = [rate for _, rate, _ in watch.rows]
    assert rates[:END] == rates[END:] and len(set(rates)) > 2
    for name, value in again.items():
        if name.endswith('prompts.tokens'):
            segments = again[name.replace('tokens', 'segments')]
            kept = [token for token in range(4) for at in [first[name][token]] if any(
                torch.equal(at[places], row) for places, row in zip(segments, value))]
            assert value.shape == (2, 3, 6) and len(kept) == 2
        elif not name.endswith('prompts.segments'):
            assert torch.equal(value, first[name]), name
    assert not torch.equal(watch.rows[END - 1][0]['head.weight'], first['head.weight'])
    averaged = next(hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model'))
    assert averaged.steps == END and {name: value.shape for name, value in averaged.module.state_dict().items()} == {
        name: value.shape for name, value in runner.model.state_dict().items()}


@pytest.mark.parametrize('train_cfg', [None, dict(by_epoch=False, max_iters=4, val_interval=2)], ids=['epoch', 'iter'])
def test_resumes_bit_for_bit(tmp_path, train_cfg, monkeypatch):
    """Inside each stage and at the boundary."""
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    def go(folder, watch, resume=False):
        return finished(run(folder, watch, ema=True, train_cfg=train_cfg, resume=resume))
    whole = state_of(go(tmp_path / 'whole', Weights(tmp_path / 'w.pth')))
    for stop in (3, END, END + 3):
        part = tmp_path / f'part{stop}'
        assert go(part, Interrupt(stop)) is None
        assert_equal(state_of(go(part, Weights(tmp_path / 'p.pth'), True)), whole)


def two(rank, folder):
    without_batch_norm(run(folder / 'two', Weights(folder / f'{rank}.pth'), epochs=1, kind=GlooRunner,
                           launcher='pytorch', batch=BATCH // 2)).train()


def test_two_processes(tmp_path):
    """The same cut and the same weights in both."""
    in_two_processes(two, tmp_path)
    one, other = (torch.load(tmp_path / f'{rank}.pth')[-1] for rank in (0, 1))
    assert_equal(one, other)
    assert one['backbone.layers.0.prompts.tokens'].shape == (2, 3, 6)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match='E2VPTHook prunes the prompts of E2VPT, and the model has VPT'):
        run(tmp_path, Weights('x'), method=dict(type='VPT', tokens=2)).train()
    with pytest.raises(ValueError, match='cuts nothing'):
        E2VPTHook(tokens=0, segments=0)
    finished(run(tmp_path / 'run', Weights(tmp_path / 'w.pth')))
    with pytest.raises(ValueError, match="checkpoint is of a run with importance='absolute', and this config has"):
        run(tmp_path / 'run', Weights('x'), resume=True, hook=dict(importance='signed')).train()
