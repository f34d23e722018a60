"""e3va's CheckpointHook: whenever a run is killed, it goes on from what lies there and ends as if it had not been."""
import errno
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import save_checkpoint

from e3va.train.resume import newest_checkpoint
from tests.conftest import VIT_ARCH
from tests.running import Classifier, assert_equal, finished, runner_of, state_of

STEPS = ('fsync', 'replace', 'remove', 'unlink')
ROOT = Path(__file__).parents[2]
ARCH = dict(VIT_ARCH, num_layers=1)                                    # it is about files, and a run is made often


def run_of(folder, watch=None, kind='e3va.CheckpointHook', method='lora', **options):
    """A run of three epochs that keeps one checkpoint and the best one; resumed from what lies there, if anything."""
    hooks = dict(checkpoint=dict(type=kind, interval=1, max_keep_ckpts=1, save_best='score', rule='greater'),
                 delta=dict(type='e3va.DeltaHook'))
    found = newest_checkpoint(folder)
    return runner_of(folder, partial(Classifier, method, arch=ARCH), {**hooks, **options}, watch or Hook(),
                     resume=bool(found), load_from=found)


def files_of(folder):
    """Names of the files of a run, logs and dumped configs left aside."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != '.py')


@pytest.fixture
def scores(monkeypatch):
    """The second epoch is the best, by the epoch of the run, so that a resumed run has the same scores."""
    from mmengine.logging import MessageHub
    monkeypatch.setattr('tests.running.Metric.compute_metrics', lambda self, results: dict(
        score=[1., 3., 2.][MessageHub.get_current_instance().get_info('epoch')]))


@pytest.fixture
def whole(tmp_path, scores):
    """(folder, state) of the run that nothing disturbed."""
    return tmp_path / 'whole', state_of(finished(run_of(tmp_path / 'whole')))


def watched(folder, monkeypatch, to):
    """Copies of a run's folder as a kill would leave it, before and after each step of its writing; in order."""
    copies = []

    def copy():
        if folder.is_dir():
            shutil.copytree(folder, to / f'{len(copies):03}', ignore=lambda path, names: [
                name for name in names if Path(path, name).is_dir() or name.endswith('.py')])
            copies.append(to / f'{len(copies):03}')

    def step(real, *args, **options):
        copy()
        real(*args, **options)
        copy()

    with monkeypatch.context() as patches:
        for name in STEPS:
            patches.setattr(os, name, partial(step, getattr(os, name)))
        yield copies


def test_a_kill_at_every_step(tmp_path, scores, whole, monkeypatch):
    folder, to = tmp_path / 'run', tmp_path / 'copies'
    for copies in watched(folder, monkeypatch, to):
        finished(run_of(folder))
    seen, last = {}, -1
    for copy in copies:
        assert sum(path.suffix == '.part' for path in copy.iterdir()) <= 1
        content = tuple((path.name, path.read_bytes()) for path in sorted(copy.iterdir()) if path.suffix != '.part')
        found = newest_checkpoint(copy)
        epoch = int(Path(found).stem.split('_')[1]) if found else 0
        assert epoch >= last                                            # what was whole stays until the next one is
        last = epoch
        seen.setdefault(content, copy)
    assert last == 3 and len(seen) > 20
    for copy in seen.values():                                          # in another place than last_checkpoint names
        resumed = finished(run_of(copy))
        assert_equal(whole[1], state_of(resumed))
        # nothing is left over, no scratch, no old one; the best one may be another: a validation is not made up for
        names = [[name for name in files_of(each) if 'best' not in name] for each in (copy, whole[0])]
        assert names[0] == names[1]


def test_what_a_run_leaves(whole):
    """One checkpoint, the best one, a delta of each: the best one's is not that of the epoch, which has gone."""
    assert files_of(whole[0]) == ['best_score_epoch_2.pth', 'delta_best_score_epoch_2.safetensors',
                                  'delta_epoch_3.safetensors', 'epoch_3.pth', 'last_checkpoint']
    assert (whole[0] / 'last_checkpoint').read_text() == str(whole[0] / 'epoch_3.pth')
    hub = torch.load(whole[0] / 'epoch_3.pth', weights_only=False)['message_hub']['runtime_info']
    assert hub['keep_ckpt_ids'] == [3] and hub['best_ckpt'] == str(whole[0] / 'best_score_epoch_2.pth')


def test_mmengine_s_own_is_lost(tmp_path, scores, monkeypatch):
    """The test above would see it: mmengine removes first."""
    for copies in watched(tmp_path / 'run', monkeypatch, tmp_path / 'copies'):
        finished(run_of(tmp_path / 'run', kind='CheckpointHook'))
    assert copies and not all(newest_checkpoint(copy) for copy in copies)


class Kill(Hook):
    """Kill the process when it is about to give the second checkpoint its name."""

    def before_train(self, runner):
        def replace(source, target, real=os.replace):
            if target.name == 'epoch_2.pth':
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)
        os.replace = replace


def killed(folder):
    run_of(Path(folder), Kill()).train()


def test_a_killed_process(tmp_path, whole):
    folder = tmp_path / 'killed'
    ended = subprocess.run(
        [sys.executable, '-c', f'from tests.test_train.test_checkpoint import killed; killed({str(folder)!r})'],
        cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    assert sum(name.endswith('.part') for name in files_of(folder)) == 1
    (folder / 'best_score_epoch_1.pth').unlink(missing_ok=True)         # its own scores differ in that process
    (folder / 'delta_best_score_epoch_1.safetensors').unlink(missing_ok=True)
    assert newest_checkpoint(folder) == str(folder / 'epoch_1.pth')
    assert_equal(whole[1], state_of(finished(run_of(folder))))
    assert not any(name.endswith('.part') for name in files_of(folder))


def test_a_full_disk(tmp_path, whole, monkeypatch):
    """The error names the file, and the run goes on when there is room again."""
    folder, real = tmp_path / 'run', os.fsync

    def full(handle):
        if (folder / 'epoch_2.pth').exists():
            raise OSError(errno.ENOSPC, 'No space left on device')
        real(handle)

    with monkeypatch.context() as patches:
        patches.setattr(os, 'fsync', full)
        with pytest.raises(ValueError, match='run/last_checkpoint cannot be written: No space left'):
            finished(run_of(folder))
    assert newest_checkpoint(folder) == str(folder / 'epoch_2.pth')
    assert (folder / 'epoch_1.pth').exists()                            # goes when all of the second is on the disk
    assert_equal(whole[1], state_of(finished(run_of(folder))))


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MB, and what makes it read-only."""
    place = tmp_path / 'disk'
    place.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', place], capture_output=True).returncode:
        pytest.skip('only root may mount')
    try:
        yield place, lambda: subprocess.run(['mount', '-o', 'remount,ro', place], check=True)
    finally:
        subprocess.run(['umount', '-l', place], check=True)


def test_a_small_disk(disk, scores, whole):
    """What is there before it is full is whole; elsewhere the run goes on from it."""
    folder = disk[0] / 'run'
    size = (whole[0] / 'epoch_3.pth').stat().st_size                    # room for one, and for half of another
    (disk[0] / 'others').write_bytes(bytes(2 ** 20 - size * 3 // 2))
    with pytest.raises(ValueError, match=r'run/epoch_\d.pth cannot be written: No space left.*Make room'):
        finished(run_of(folder, checkpoint=dict(type='e3va.CheckpointHook', interval=1, max_keep_ckpts=1)))
    found = newest_checkpoint(folder)
    assert found == (folder / 'last_checkpoint').read_text() == str(folder / 'epoch_1.pth')
    assert not any(path.suffix == '.part' for path in folder.iterdir())
    elsewhere = shutil.copytree(folder, disk[0].parent / 'elsewhere')
    assert_equal(whole[1], state_of(finished(run_of(elsewhere))))


def test_a_disk_that_is_read_only(disk):
    folder = disk[0] / 'run'
    save(folder / 'epoch_1.pth')
    disk[1]()
    for path in (folder / 'epoch_1.pth', folder / 'new' / 'epoch_1.pth'):
        with pytest.raises(ValueError, match='epoch_1.pth cannot be written: Read-only file system; .*Look at the'):
            save(path)
    assert newest_checkpoint(folder) == str(folder / 'epoch_1.pth') and files_of(folder) == ['epoch_1.pth']


def save(path):
    """As the hook does, by its backend of mmengine's."""
    save_checkpoint(dict(meta=dict(iter=2), state_dict={}, optimizer={}), str(path),
                    backend_args=dict(backend='e3va.whole'))


def test_a_delta_that_cannot_be_written(tmp_path, whole):
    """The run says so, goes on, and ends with the same weights and all other files."""
    folder = tmp_path / 'run'
    (folder / 'delta_epoch_2.safetensors').mkdir(parents=True)
    assert_equal(whole[1], state_of(finished(run_of(folder))))
    assert files_of(folder) == files_of(whole[0])
    log = next(folder.glob('*/*.log')).read_text()
    assert 'the run goes on without this delta: ' in log and 'is there and is no ordinary file' in log


def test_a_copy_leaves_the_original_alone(tmp_path, scores, whole):
    """The best checkpoint is recorded by its full path; a copy of the folder removes its own."""
    class Stop(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                raise KeyboardInterrupt

    assert finished(run_of(tmp_path / 'first', Stop())) is None
    shutil.copytree(tmp_path / 'first', tmp_path / 'copy')
    before = files_of(tmp_path / 'first')
    assert 'best_score_epoch_1.pth' in before
    finished(run_of(tmp_path / 'copy'))
    assert files_of(tmp_path / 'first') == before
    assert files_of(tmp_path / 'copy') == files_of(whole[0])


def test_several_metrics_and_a_folder_of_its_own(tmp_path, monkeypatch):
    """All of mmengine's options hold: several best checkpoints, out_dir, a template of names."""
    from mmengine.logging import MessageHub
    monkeypatch.setattr('tests.running.Metric.compute_metrics', lambda self, results: dict(zip(
        'ab', [(1, 3), (2, 2), (3, 1)][MessageHub.get_current_instance().get_info('epoch')])))
    run = partial(run_of, tmp_path / 'run', checkpoint=dict(
        type='e3va.CheckpointHook', interval=1, max_keep_ckpts=2, save_best=['a', 'b'], rule='greater',
        out_dir=str(tmp_path / 'out'), filename_tmpl='{}.tar'))
    finished(run())
    assert sorted(os.listdir(tmp_path / 'out' / 'run')) == ['2.tar', '3.tar', 'best_a_3.tar', 'best_b_1.tar']
    assert sorted(path.name for path in (tmp_path / 'run').glob('*.safetensors')) == [
        f'delta_{name}.safetensors' for name in ('2', '3', 'best_a_3', 'best_b_1')]
    assert newest_checkpoint(tmp_path / 'run') == str(tmp_path / 'out' / 'run' / '3.tar')


def test_another_optimizer(tmp_path, whole):
    """Where no config is recorded, as here, the optimizer's state shows that the checkpoint is of another run."""
    shutil.copy(whole[0] / 'epoch_3.pth', tmp_path / 'epoch_3.pth')
    with pytest.raises(ValueError, match=r"its optimizer has 32 parameters \(groups: 1\), this run's has 22 "):
        finished(run_of(tmp_path, method='fixed'))
