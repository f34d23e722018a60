"""Runs of two epochs through tools/train.py and tools/test.py, on stock configs of reduced width and generated data."""
import errno
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint
from mmengine.utils import ManagerMixin

from e3va.datasets import synthetic
from e3va.delta import file as delta_file
from tests.conftest import tool

ROOT = Path(__file__).parents[2]
SWIN = 'depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8]'
COMMON = '''
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False)
test_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=3)]
default_hooks = dict(logger=dict(interval=1))
log_processor = dict(window_size=1)
randomness = dict(seed=0)
'''
DETECTION = f'''
model = dict(
    backbone=dict(embed_dims=24, {SWIN}, init_cfg=None),
    neck=dict(in_channels=CHANNELS, out_channels=32))
train_cfg = dict(max_epochs=2)
train_dataloader = dict(dataset=dict(data_root='data/coco/', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=MASK),
    dict(type='Resize', scale=(96, 64), keep_ratio=True), dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')]))
val_dataloader = dict(dataset=dict(data_root='data/coco/', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=MASK),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/coco/annotations/instances_val2017.json')
test_evaluator = val_evaluator
'''
# kind: (method, the stock config, what makes it small)
KINDS = dict(
    detection=('e3va', 'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
               DETECTION.replace('CHANNELS', '[48, 96, 192]').replace('MASK', 'False') + '''
model['bbox_head'] = dict(in_channels=32, feat_channels=32, stacked_convs=1)
'''),
    instances=('lora', 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
               DETECTION.replace('CHANNELS', '[24, 48, 96, 192]').replace('MASK', 'True') + '''
model['rpn_head'] = dict(in_channels=32, feat_channels=32)
model['roi_head'] = dict(
    bbox_roi_extractor=dict(out_channels=32), bbox_head=dict(in_channels=32, fc_out_channels=32),
    mask_roi_extractor=dict(out_channels=32), mask_head=dict(num_convs=1, in_channels=32, conv_out_channels=32))
'''),
    semantic=('e3va', 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', f'''
model = dict(
    data_preprocessor=dict(size=(64, 64)), backbone=dict(embed_dims=24, {SWIN}, init_cfg=None),
    decode_head=dict(in_channels=[24, 48, 96, 192], channels=32),
    auxiliary_head=dict(in_channels=96, channels=32))
train_cfg = dict(max_iters=8, val_interval=4)
train_dataloader = dict(dataset=dict(data_root='data/ade', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomCrop', crop_size=(64, 64), cat_max_ratio=0.75), dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'), dict(type='PackSegInputs')]))
val_dataloader = dict(dataset=dict(data_root='data/ade', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs')]))
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(interval=4))
'''),
    classification=('e3va', 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', '''
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8]),
                  img_size=64, pad_small_map=True, init_cfg=dict(type='Pretrained', checkpoint='trunk.pth')),
    head=dict(in_channels=192))
train_cfg = dict(max_epochs=2)
train_dataloader = dict(dataset=dict(data_root='data/imagenet', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', scale=64), dict(type='RandomFlip', prob=0.5),
    dict(type='RandAugment', policies='timm_increasing', num_policies=2, total_level=10, magnitude_level=9),
    dict(type='PackInputs')]))
val_dataloader = dict(dataset=dict(data_root='data/imagenet', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]))
test_dataloader = val_dataloader
default_hooks = dict(delta=dict(type='e3va.DeltaHook'))
'''))


train, test = tool('train.py'), tool('test.py')


def run(tool, *argv):
    """A run of a tool in this process, as if in one of its own: mmengine keeps its visualizers and loggers by name."""
    kinds = [ManagerMixin]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if '_instance_dict' in vars(kind):
            kind._instance_dict.clear()
    return tool.main([str(arg) for arg in argv])


def stock(config):
    """The stock library's own model of a config."""
    cfg = Config.fromfile(config)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        return registry.build(cfg.model)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Small data sets where the configs look for them, and a config of each kind."""
    folder = tmp_path_factory.mktemp('train')
    synthetic.make_coco(folder / 'data/coco', images=8, size=(64, 96), classes=3)
    synthetic.make_ade20k(folder / 'data/ade', images=8, size=(64, 96), classes=3)
    synthetic.make_imagenet(folder / 'data/imagenet', images=8, size=(64, 64), classes=3)
    for kind, (_, base, text) in KINDS.items():
        (folder / f'{kind}_task.py').write_text(f'_base_ = {base!r}\n{text}')
        (folder / f'{kind}.py').write_text(f"_base_ = './{kind}_task.py'\n{COMMON}")
    torch.save(stock(folder / 'classification.py').backbone.state_dict(), folder / 'trunk.pth')
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture(scope='module')
def finished(folder):
    """kind -> work dir of its finished run of two epochs."""
    done = {}

    def finish(kind):
        if kind not in done:
            done[kind] = folder / 'runs' / kind
            run(train, f'{kind}.py', '--method', KINDS[kind][0], '--work-dir', done[kind])
        return done[kind]
    return finish


def rows(work_dir):
    """What the latest run in a work dir logged, a dict a row."""
    file = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in file.read_text().splitlines()]


def epochs(work_dir):
    """The two checkpoints of a run, as paths and as mmengine reads them."""
    paths = [work_dir / f'epoch_{i}.pth' for i in (1, 2)]
    if not paths[0].exists():
        paths = [work_dir / f'iter_{i}.pth' for i in (4, 8)]
    return paths, [_load_checkpoint(str(path), map_location='cpu') for path in paths]


@pytest.mark.parametrize('kind', KINDS)
def test_two_epochs(finished, kind):
    """The loss falls, the method and the head move, and of the trunk nothing but E3VA's norms does."""
    work_dir = finished(kind)
    losses = [row['loss'] for row in rows(work_dir) if 'loss' in row]
    assert len(losses) == 8 and all(0 < loss < float('inf') for loss in losses)
    assert sum(losses[4:]) < sum(losses[:4])

    before, after = (checkpoint['state_dict'] for checkpoint in epochs(work_dir)[1])
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    keys = set(stock(f'{kind}.py').state_dict())
    trunk = {name.removeprefix('backbone.') for name in moved & keys if name.startswith('backbone.')}
    assert all(re.fullmatch(r'norm\d\.(weight|bias)', name) for name in trunk)
    assert bool(trunk) == (KINDS[kind][0] == 'e3va')
    assert any(name.startswith('backbone.') for name in moved - keys)
    assert any(not name.startswith('backbone.') for name in moved)


def test_the_trunk_is_the_file_s(finished, folder):
    after = epochs(finished('classification'))[1][1]['state_dict']
    given = torch.load(folder / 'trunk.pth')
    trained = {name for name in given if name.startswith('norm')}
    assert len(trained) == 2
    assert all(torch.equal(value, after[f'backbone.{name}']) for name, value in given.items() if name not in trained)


@pytest.mark.parametrize('method', ['lora', 'e3va'])
def test_a_delta_holds_the_averaged_weights(folder, monkeypatch, method):
    """Under EMAHook: bit-equal to what its averaged model held at that checkpoint, and not what was trained."""
    held, trained, update = {}, {}, EMAHook.after_train_iter

    def after_train_iter(hook, runner, *args, **options):
        update(hook, runner, *args, **options)
        for found, model in ((held, hook.ema_model.module), (trained, hook.src_model)):
            found[runner.iter + 1] = {name: value.clone() for name, value in model.state_dict().items()}

    monkeypatch.setattr(EMAHook, 'after_train_iter', after_train_iter)
    (folder / 'ema.py').write_text(
        "_base_ = './classification.py'\ncustom_hooks = [dict(type='EMAHook', momentum=0.2)]\n")
    work_dir = folder / 'runs' / f'ema_{method}'
    run(train, 'ema.py', '--method', method, '--work-dir', work_dir)
    for i in (1, 2):
        tensors, meta = delta_file.read(work_dir / f'delta_epoch_{i}.safetensors')
        assert meta['averaged'] and any('pairs' in name or 'e3va' in name for name in tensors)
        assert all(torch.equal(value, held[4 * i][name]) for name, value in tensors.items())
        moved = [name for name, value in tensors.items() if not torch.equal(value, trained[4 * i][name])]
        assert len(moved) > len(tensors) / 2


@pytest.mark.parametrize('kind, method, epochs', [
    ('instances', 'gps_supcon', 1), ('semantic', 'gps_supcon', 0), ('detection', 'gps', 1)])
def test_gps(folder, kind, method, epochs):
    """It selects on the task's loss, or on boxes and regions, and trains; nothing but the selected entries moves."""
    work_dir = folder / 'runs' / f'{kind}_{method}'
    short = f'train_cfg.max_{"epochs" if epochs else "iters"}={epochs or 4}'
    run(train, f'{kind}.py', '--method', method, '--work-dir', work_dir, '--cfg-options', short)
    assert all(0 < row['loss'] < float('inf') for row in rows(work_dir) if 'loss' in row)
    log = next(path for path in work_dir.glob('*/*.log')).read_text()
    found = re.search(r'GPS: selected ([\d,]+) entries of \d+ layers by (\w+) on (\d+) batches.*: (\d+)\n', log)
    assert found[2] == ('supcon' if 'supcon' in method else 'task') and int(found[3]) + int(found[4]) == 4
    state = _load_checkpoint(str(next(work_dir.glob('*_[14].pth'))), map_location='cpu')['state_dict']
    chosen = sum(value.numel() for name, value in state.items() if name.endswith('.index'))
    assert chosen == int(found[1].replace(',', ''))


@pytest.mark.parametrize('kind', ['instances', 'semantic'])   # epochs and iterations; DropPath, dropout, random crops
def test_resume_is_exact(finished, folder, kind):
    """A run that was interrupted after its first checkpoint ends as the run that was not, bit for bit."""
    paths, (_, whole) = epochs(finished(kind))
    resumed = folder / 'runs' / f'{kind}_resumed'
    resumed.mkdir()
    shutil.copy(paths[0], resumed)
    (resumed / paths[1].name).write_bytes(paths[1].read_bytes()[:-100])         # half-written
    (resumed / 'last_checkpoint').touch()                                       # and this not at all
    run(train, f'{kind}.py', '--method', KINDS[kind][0], '--work-dir', resumed, '--resume')
    again = epochs(resumed)[1][1]
    assert len(rows(resumed)) < len(rows(finished(kind)))
    assert all(torch.equal(whole['state_dict'][name], again['state_dict'][name]) for name in whole['state_dict'])
    for number, moments in whole['optimizer']['state'].items():
        assert all(torch.equal(moments[name], again['optimizer']['state'][number][name])
                   for name in ('exp_avg', 'exp_avg_sq'))
    assert whole['param_schedulers'] == again['param_schedulers']


@pytest.mark.parametrize('kind, checkpoint, metric', [
    ('instances', '{}/epoch_2.pth', 'coco/bbox_mAP'),
    ('semantic', '{}/iter_8.pth', 'mIoU'),
    ('classification', '{}/epoch_2.pth', 'accuracy/top5'),
    ('classification', 'e3va://{}/delta_epoch_2.safetensors', 'accuracy/top5')])
def test_testing_gives_the_last_validation(finished, tmp_path, kind, checkpoint, metric):
    """tools/test.py measures what the run's last validation measured, and writes the predictions."""
    work_dir = finished(kind)
    out = tmp_path / ('maps' if kind == 'semantic' else 'predictions.pkl')
    run(test, f'{kind}.py', checkpoint.format(work_dir), '--method', KINDS[kind][0], '--work-dir', tmp_path,
        '--out', out)
    validated = [row for row in rows(work_dir) if metric in row][-1]
    tested = json.loads(next(tmp_path.glob('*/*.json')).read_text())
    assert tested[metric] == validated[metric]
    assert len(list(out.iterdir()) if out.is_dir() else pickle.loads(out.read_bytes())) == 8


OTHERS = {                                                      # arguments: part of the message; it is LoRA's
    '': 'was trained with the method {"rank": 8, ',
    '--method e3va': 'entries of another method than E3VA',
    '--method fixed': 'entries of another method than Fixed',
    '--method lora --cfg-options model.backbone.method.rank=4': 'entries of LoRA in other shapes',
    '--method lora --cfg-options model.backbone.method.bits=1': 'LoRA',
    '--method lora --cfg-options load_from=STOCK': 'lacks'}


@pytest.mark.parametrize('arguments', OTHERS)
@pytest.mark.parametrize('task', ['test', 'publish', 'train'])
def test_the_checkpoint_of_another_model(finished, tmp_path, capsys, task, arguments):
    """A number, a delta or a run from values that were never trained is refused in one line, by each tool."""
    checkpoint, out = finished('instances') / 'epoch_2.pth', tmp_path / 'out.safetensors'
    if 'STOCK' in arguments:
        if task == 'train':
            pytest.skip('is how a run begins')
        checkpoint, arguments = tmp_path / 'stock.pth', arguments.partition(' --cfg')[0]
        torch.save(dict(state_dict=stock('instances.py').state_dict()), checkpoint)
        words = 'lacks'
    else:
        words = OTHERS[arguments]
    tools = dict(
        test=(test, ['instances.py', checkpoint, '--work-dir', tmp_path, *arguments.split()]),
        publish=(tool('model_converters/publish_delta.py'), ['instances.py', checkpoint, out, *arguments.split()]),
        train=(train, ['instances.py', '--work-dir', tmp_path, *arguments.split(),
                       *([] if '--cfg-options' in arguments else ['--cfg-options']), f'load_from={checkpoint}']))
    if task == 'publish' and not arguments:
        words = 'has no tuned trunk'
    with pytest.raises(SystemExit) as ended:
        run(*[tools[task][0], *tools[task][1]])
    assert ended.value.code == 2 and not out.exists()
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: ') and words in error


@pytest.mark.parametrize('kind, checkpoint', [
    ('instances', 'epoch_2.pth'), ('semantic', 'iter_8.pth'), ('classification', 'epoch_2.pth')])
def test_painting(finished, tmp_path, kind, checkpoint):
    """Every image is painted, wherever the library puts it."""
    checkpoint = finished(kind) / checkpoint
    run(test, f'{kind}.py', checkpoint, '--method', KINDS[kind][0], '--work-dir', tmp_path / 'run', '--show-dir',
        tmp_path / 'show')
    assert len([path for path in tmp_path.rglob('*') if path.suffix in ('.jpg', '.png')]) == 8


@pytest.mark.parametrize('kind, checkpoint, model', [
    ('detection', 'epoch_2.pth', 'DetTTAModel'), ('semantic', 'iter_8.pth', 'SegTTAModel'),
    ('classification', 'epoch_2.pth', 'AverageClsScoreTTA')])
def test_test_time_augmentation(finished, tmp_path, monkeypatch, kind, checkpoint, model):
    """The library's own test-time model sees every image."""
    seen = []
    testing = Runner.test
    monkeypatch.setattr(Runner, 'test', lambda runner: (seen.append(runner), testing(runner)))
    checkpoint = finished(kind) / checkpoint
    run(test, f'{kind}.py', checkpoint, '--method', KINDS[kind][0], '--work-dir', tmp_path, '--tta', '--out',
        tmp_path / ('maps' if kind == 'semantic' else 'predictions.pkl'))
    assert type(seen[0].model).__name__ == model
    assert len(list((tmp_path / 'maps').iterdir()) if kind == 'semantic' else
               pickle.loads((tmp_path / 'predictions.pkl').read_bytes())) == 8


WRONG = {                                                       # arguments after `detection.py`: part of the message
    '--method e4va': "unknown method 'e4va'; near: e3va",
    '--cfg-options load_from=other.pth --method e3va': 'no entry of the trunk',
    '--cfg-options model.backbone.out_indices=(1,2,4) --method e3va': 'give numbers from 0 to 3',
    '--cfg-options model.backbone.method.rank=0 --method e3va': 'rank must be an integer of at least 1',
    '--cfg-options model.backbone.method.rank=2.5 --method e3va': 'rank must be an integer of at least 1',
    '--cfg-options model.backbone.type=ResNet': "unexpected keyword argument 'embed_dims'",
    '--cfg-options model.type=RetinaNetz': 'RetinaNetz is not in the mmdet::model registry',
    '--work-dir detection.py/below': 'the work dir detection.py/below cannot be written',
    '--cfg-options train_dataloader.dataset.metainfo.classes=["unicorn"]': 'train_dataloader.dataset is empty',
    '--cfg-options train_dataloader.batch_size=50 train_dataloader.batch_sampler.drop_last=1': 'no whole batch of 50',
    '--resume gone.pth': 'there is no checkpoint gone.pth',
    '--resume other.pth': 'other.pth holds state_dict and no state of an optimizer',
    '--resume half.pth': 'half.pth is not a readable checkpoint',
    '--resume detection.pth --method lora': 'is of a run with the method E3VA(rank=8), and this one is with the method '
                                            'LoRA(',
    '--resume detection.pth': 'is of a run with the method E3VA(rank=8), and this one is with no method: resume with',
    '--cfg-options auto_scale_lr=None --auto-scale-lr': '--auto-scale-lr needs auto_scale_lr',
    '--launcher slurm': '--launcher slurm needs GPUs',
    '--amp': 'needs a GPU',
}


@pytest.mark.parametrize('arguments', WRONG)
def test_wrong_input_is_one_line(folder, capsys, finished, arguments):
    if arguments in ('--launcher slurm', '--amp') and torch.cuda.is_available():
        pytest.skip('right on this machine')
    torch.save(dict(state_dict={'unrelated.weight': torch.ones(1)}), 'other.pth')
    Path('half.pth').write_bytes(Path('other.pth').read_bytes()[:-100])
    if 'detection.pth' in arguments:
        shutil.copy(finished('detection') / 'epoch_1.pth', 'detection.pth')
    defaults = [] if '--work-dir' in arguments else ['--work-dir', 'runs/wrong']
    with pytest.raises(SystemExit) as ended:
        run(train, 'detection.py', *defaults, *arguments.split())
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: ') and WRONG[arguments] in error


def test_a_second_run_in_a_work_dir(folder, capsys):
    """It is refused while the first one lives, and after a kill goes on at once."""
    first = subprocess.Popen([sys.executable, '-c', "from e3va.files.whole import alone\nwith alone('runs/shared'):\n"
                              "    print('begun', flush=True)\n    input()"], env=environment(), text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout.readline() == 'begun\n'
    arguments = 'detection.py', '--work-dir', 'runs/shared', '--cfg-options', 'train_cfg.max_epochs=1'
    with pytest.raises(SystemExit) as ended:
        run(train, *arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(
        f'error: another run writes to runs/shared (process {first.pid} on ')
    first.kill()
    first.communicate()
    run(train, *arguments)                                              # no method: its checkpoints are kept whole too
    assert (folder / 'runs/shared/epoch_1.pth').exists()
    log = next((folder / 'runs/shared').glob('*/*.log')).read_text()
    assert re.search(r'before_train:.*?CheckpointHook', log, re.DOTALL)
    assert _load_checkpoint('runs/shared/epoch_1.pth')['message_hub']['runtime_info']['outdated_ckpts'] == []


def test_wrong_input_in_a_process_of_its_own(folder):
    """Nothing but the one line reaches stderr."""
    ended = subprocess.run([sys.executable, ROOT / 'tools/train.py', 'detection.py', '--method', 'e4va'],
                           capture_output=True, text=True, env=environment())
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [ended.stderr.strip()] and ended.stderr.startswith('error: unknown method')


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    """Also where mmengine writes: its logs, the dumped config."""
    def full(self):
        raise OSError(errno.ENOSPC, 'No space left on device', 'runs/wrong/config.py')

    monkeypatch.setattr('mmengine.runner.Runner.train', full)
    with pytest.raises(SystemExit):
        run(train, 'detection.py', '--work-dir', 'runs/wrong')
    assert capsys.readouterr().err.splitlines()[-1].startswith(
        'error: the disk is full for runs/wrong/config.py: make room')


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(self):
        raise ValueError('a bug')                                   # raised here, not in e3va

    monkeypatch.setattr('mmengine.runner.Runner.train', broken)
    with pytest.raises(ValueError, match='a bug'):
        run(train, 'detection.py', '--work-dir', 'runs/wrong')


def environment():
    """Of a tool that is started from this environment, also where e3va is not installed."""
    return dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1',
                PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]))


@pytest.mark.skipif(torch.cuda.is_available(), reason='the processes would share GPUs')
def test_two_processes(folder):
    """Two CPU processes train under gloo, validate together, and say what became of SyncBN."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    ended = subprocess.run(
        ['bash', ROOT / 'tools/dist_train.sh', 'semantic.py', '2', '--method', 'e3va', '--work-dir', 'runs/two',
         '--cfg-options', 'train_cfg.max_iters=4'],
        capture_output=True, text=True, env=dict(environment(), PORT=str(port)))
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count('SyncBN needs one and is replaced by BN') == 1
    work_dir = folder / 'runs/two'
    losses = [row['loss'] for row in rows(work_dir) if 'loss' in row]
    assert len(losses) == 4 and all(0 < loss < float('inf') for loss in losses)
    assert any('mIoU' in row for row in rows(work_dir))
    assert (work_dir / 'iter_4.pth').exists()


DYING = '''
import os, signal, time
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Die(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 1 and runner.rank == 1:
            open('died', 'w').write(str(time.time()))
            if os.environ['DEATH'] == 'SIGKILL':
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError('this rank dies')
'''


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='the processes would share GPUs')
@pytest.mark.parametrize('runner', ['', 'runner_type=FlexibleRunner strategy.type=e3va.ShardStrategy'])
@pytest.mark.parametrize('death, said', [
    ('an error', 'RuntimeError: this rank dies'), ('SIGKILL', 'Signal 9 (SIGKILL)')])
def test_a_rank_that_dies(folder, death, said, runner):
    """It ends the others within a minute, and what it died of is shown."""
    (folder / 'dying.py').write_text(DYING)
    (folder / 'semantic_dying.py').write_text("_base_ = './semantic.py'\ncustom_imports = dict(imports=['dying'])\n"
                                              "custom_hooks = [dict(type='Die')]\n")
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    ended = subprocess.run(
        ['bash', ROOT / 'tools/dist_train.sh', 'semantic_dying.py', '2', '--method', 'e3va', '--work-dir', 'runs/dying',
         '--cfg-options', 'train_cfg.max_iters=4', *runner.split()], capture_output=True, text=True,
        env=dict(environment(), PORT=str(port), DEATH=death,
                 PYTHONPATH=os.pathsep.join([str(ROOT), str(folder)])))
    assert ended.returncode != 0 and said in ended.stderr
    assert time.time() - float((folder / 'died').read_text()) < 60
