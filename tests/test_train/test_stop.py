"""SIGTERM saves where the run is and ends it with 0; resumed, it goes on in the middle of the epoch."""
import os
import signal
from functools import partial

import pytest
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from e3va.command.processes import GlooRunner
from e3va.train.resume import newest_checkpoint
from e3va.train.rng_state import skipped
from tests.conftest import in_two_processes
from tests.running import Classifier, assert_equal, runner_of, state_of, without_batch_norm


class Watch(Hook):
    """Send SIGTERM in a step of the training or of a validation, and write down which images each step has."""

    def __init__(self, at=None, stage='train', rank=0):
        self.at, self.stage, self.rank, self.labels = at, stage, rank, []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.labels.append(data_batch['inputs'].sum(dim=(1, 2, 3)).tolist())
        self.send(runner, 'train')

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.send(runner, 'val')

    def send(self, runner, stage):
        if runner.iter == self.at and stage == self.stage and get_rank() == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)


REGULAR = dict(checkpoint=dict(type='e3va.CheckpointHook', interval=1, max_keep_ckpts=1),
               delta=dict(type='e3va.DeltaHook'))


def run_of(folder, watch, hooks=REGULAR, **options):
    """Three epochs of four steps, in another order each."""
    found = newest_checkpoint(folder)
    return runner_of(folder, partial(Classifier, 'lora'), dict(hooks, stop=dict(type='e3va.StopHook')), watch,
                     resume=bool(found), load_from=found, **{**dict(batch=2, shuffle=True, ema=True), **options})


def ended(runner):
    """The exit code with which a run ends; SIGTERM does then what it did before."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        runner.train()
    assert signal.getsignal(signal.SIGTERM) is before
    return stop.value.code


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix in ('.pth', '.safetensors'))


@pytest.fixture
def whole(tmp_path):
    """(order of the images, state) of the run that nothing disturbed."""
    watch = Watch()
    runner = run_of(tmp_path / 'whole', watch)
    runner.train()
    return watch.labels, state_of(runner)


@pytest.mark.parametrize('at, stage, kept', [
    (5, 'train', ['iter_6.pth']), (7, 'train', ['iter_8.pth']), (0, 'train', ['iter_1.pth']),
    (8, 'val', ['epoch_2.pth'])])
def test_in_the_middle_of_an_epoch(tmp_path, whole, at, stage, kept):
    """Also in its first and its last step, and in a validation, where EMAHook has its weights in the model's place."""
    first, second = Watch(at, stage), Watch()
    folder = tmp_path / 'run'
    assert ended(run_of(folder, first)) == 0
    between, = kept
    assert newest_checkpoint(folder) == (folder / 'last_checkpoint').read_text() == str(folder / between)
    assert {between, f'delta_{between[:-4]}.safetensors'} <= set(names(folder))
    torch.rand(3)                                                       # a new process starts from another state
    runner = run_of(folder, second)
    runner.train()
    assert first.labels + second.labels == whole[0]
    assert_equal(whole[1], state_of(runner))
    assert names(folder) == ['delta_epoch_3.safetensors', 'epoch_3.pth']        # outdated by the next regular one


def test_twice(tmp_path, whole):
    watches = Watch(1), Watch(2), Watch()
    for watch in watches[:2]:
        assert ended(run_of(tmp_path / 'run', watch)) == 0
    runner = run_of(tmp_path / 'run', watches[2])
    runner.train()
    assert [labels for watch in watches for labels in watch.labels] == whole[0]
    assert_equal(whole[1], state_of(runner))


def test_in_a_validation_behind_steps_that_no_checkpoint_has(tmp_path, whole):
    hooks = dict(checkpoint=dict(type='e3va.CheckpointHook', interval=3))
    assert ended(run_of(tmp_path / 'run', Watch(8, 'val'), hooks=hooks)) == 0
    assert names(tmp_path / 'run') == ['iter_8.pth']
    runner = run_of(tmp_path / 'run', Watch(), hooks=hooks)
    runner.train()
    assert_equal(whole[1], state_of(runner))


def test_an_iteration_loop(tmp_path, monkeypatch):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    run = partial(run_of, train_cfg=dict(by_epoch=False, max_iters=6, val_interval=3), ema=False, schedule=False)
    undisturbed = run(tmp_path / 'whole', Watch())
    undisturbed.train()
    for at in (3, 1):
        assert ended(run(tmp_path / f'run_{at}', Watch(at))) == 0
        resumed = run(tmp_path / f'run_{at}', Watch())
        resumed.train()
        assert_equal(state_of(undisturbed), state_of(resumed))


def two(rank, folder):
    """Run in each process: the second is asked to end, and both do, at the same step; then they go on."""
    for name, at in (('whole', None), ('run', 2)):
        for _ in range(2 if at else 1):
            watch = Watch(at if newest_checkpoint(folder / name) is None else None, rank=1)
            torch.distributed.barrier()
            runner = without_batch_norm(run_of(folder / name, watch, ema=False, schedule=False, epochs=1, batch=1,
                                               kind=partial(GlooRunner, launcher='pytorch')))
            try:
                runner.train()
            except SystemExit as stop:
                assert stop.code == 0 and runner.iter == 2
            torch.distributed.barrier()
        torch.save(state_of(runner), folder / f'{name}-{rank}.pth')
        torch.save(watch.labels, folder / f'{name}-{rank}-labels.pth')


def test_two_processes(tmp_path):
    folder = in_two_processes(two, tmp_path)
    for rank in range(2):
        one, other = (torch.load(folder / f'{name}-{rank}.pth') for name in ('whole', 'run'))
        assert_equal(one, other)
        labels = torch.load(folder / f'run-{rank}-labels.pth')
        assert labels == torch.load(folder / f'whole-{rank}-labels.pth')[3:]


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        return i


@pytest.mark.parametrize('workers', [0, 1])
def test_the_order_of_a_sampler_that_draws(workers):
    """torch's RandomSampler takes its seed from the global generator, behind that of the workers."""
    def batches(done):
        torch.manual_seed(4)
        loader = DataLoader(Numbers(), batch_size=3, shuffle=True, num_workers=workers)
        return [batch.tolist() for batch in (skipped(loader, done) if done else loader)]

    assert batches(2) == batches(0)[2:] and len(batches(4)) == 0
