"""NOAHHook in a runner: a subnet a step, resume, two processes, what it refuses."""
import pytest
from mmengine.hooks import Hook

from e3va.command.processes import GlooRunner
from e3va.noah.method import Space, drawn
from tests.running import (
    BATCH,
    Classifier,
    Interrupt,
    Weights,
    assert_as_one_process,
    assert_equal,
    finished,
    runner_of,
    state_of,
    without_batch_norm,
)

METHOD = dict(type='NOAH', sizes=(1, 2))
HOOKS = dict(noah=dict(type='e3va.NOAHHook'))
WRAPPER = dict(type='e3va.DMLoRAOptimWrapper')


class Reached(Hook):
    """Which parameters a step gave a gradient, and the adapters' channels that have one."""

    def __init__(self):
        self.rows = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        units = [block.ffn.layers[1].adapter.unit for block in runner.model.backbone.layers]
        self.rows.append([0 if unit.down.grad is None else int(unit.down.grad.any(1).sum()) for unit in units])


def run(folder, watch, method=METHOD, wrapper=WRAPPER, **options):
    return runner_of(folder, lambda: Classifier(method, drop_path_rate=0.), HOOKS, watch, wrapper=wrapper, **options)


def test_a_subnet_a_step(tmp_path, monkeypatch):
    watch = Reached()
    monkeypatch.setattr('mmengine.optim.OptimWrapper.update_params', update_and_keep)
    assert finished(run(tmp_path, watch))
    space = Space(4, (1, 2), (1, 2, 3, 4))
    assert watch.rows == [drawn(space, step, 3)['adapter'] for step in range(6)]


def update_and_keep(wrapper, loss, **options):
    """As mmengine's, but the gradients of a step are there until the next."""
    wrapper.zero_grad()
    wrapper.backward(loss)
    wrapper.step()


def test_resumes_bit_for_bit(tmp_path):
    whole = state_of(finished(run(tmp_path / 'whole', Weights(tmp_path / 'whole.pth'), ema=True)))
    assert finished(run(tmp_path / 'part', Interrupt(3), ema=True)) is None
    assert_equal(state_of(finished(run(tmp_path / 'part', Weights(tmp_path / 'p.pth'), ema=True, resume=True))), whole)


def train(folder, file, **options):
    without_batch_norm(run(folder, Weights(file), epochs=1, **options)).train()


def two(rank, folder):
    train(folder / 'two', folder / f'{rank}.pth', kind=GlooRunner, launcher='pytorch', batch=BATCH // 2)


def test_two_processes(tmp_path):
    """The same draws in both, and the weights of one process."""
    assert_as_one_process(train, two, tmp_path, rtol=1e-4, atol=1e-5)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match='for the supernet of NOAH, and the model has LoRA: drop'):
        run(tmp_path / 'lora', Weights('x'), method=dict(type='LoRA', rank=2)).train()
    with pytest.raises(ValueError, match='the model has NOAH with a subnet'):
        run(tmp_path / 'subnet', Weights('x'), method=dict(type='NOAH', subnet=dict.fromkeys(
            ('prompt', 'lora', 'adapter'), [1] * 4))).train()
    with pytest.raises(ValueError, match='knows of parts without a gradient, not OptimWrapper'):
        run(tmp_path / 'wrapper', Weights('x'), wrapper={}).train()
