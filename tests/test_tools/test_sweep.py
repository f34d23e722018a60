"""tools/sweep.py: which runs there are, what is chosen, what goes on after a kill, what a failed run does."""
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from e3va.command.line import read_config, run_parser
from e3va.command.processes import build_runner, card, scores_of
from e3va.command.rows import identity
from tests.conftest import tool

sweep = tool('sweep.py')
START = sweep.Pool.start
TASKS = Path(__file__).parents[2] / 'configs/_base_/tasks'
CONFIG = """
default_scope = 'mmpretrain'
sweep = dict(score='accuracy/top1', rates=[1e-4, 1e-2], weight_decays=[0.0])
model = dict(
    type='ImageClassifier',
    backbone=dict(type='VisionTransformer', img_size=32, patch_size=16, arch=dict(
        embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)),
    head=dict(type='VisionTransformerClsHead', num_classes=2, in_channels=24))
data_preprocessor = dict(num_classes=2, mean=[127.5] * 3, std=[127.5] * 3)
steps = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', data_root='images', pipeline=steps))
val_dataloader = dict(train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = dict(val_dataloader, dataset=dict(train_dataloader['dataset'], indices=6))
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, ))
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a task of eight images, in which the test runs; runs are made in the test's own process."""
    for i in range(8):
        folder = tmp_path / 'images' / 'ab'[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (32, 32), (250 * (i % 2), 10 * i, 0)).save(folder / f'{i}.png')
    (tmp_path / 'colours.py').write_text(textwrap.dedent(CONFIG))
    monkeypatch.chdir(tmp_path)
    made = []

    def start(self, run, place, say):
        made.append((run.method, run.rate, run.decay, run.seed, run.splits))
        run.folder.mkdir(parents=True, exist_ok=True)
        sweep.train(*sweep.heard(run.told('python tools/sweep.py')))    # as a worker hears of it
        return 0

    monkeypatch.setattr(sweep.Pool, 'start', start)
    return made


def swept(*arguments):
    with pytest.raises(SystemExit) as end:
        sweep.main(['colours.py', '--workers', '1', '--out', 'out', *arguments])
    return end.value.code


def rows():
    with open('out/rows.jsonl') as file:
        return [json.loads(line) for line in file]


def test_the_protocol(place, capsys):
    """Each rate by seed 0 on val alone, then the best with fresh seeds, on val and test; nothing is run twice."""
    assert swept('--methods', 'fixed,lora:rank=2', '--seeds', '1', '2', '--tune') == 0
    choices = [run for run in place if run[3] == 0]
    assert choices == [(method, rate, 0., 0, ('val', )) for method in ('fixed', 'lora:rank=2') for rate in (1e-4, 1e-2)]
    tried = {(row['method'], row['rate']): row['value'] for row in rows() if row['seed'] == 0}
    best = {method: max((1e-4, 1e-2), key=lambda rate: tried[method, rate]) for method in ('fixed', 'lora:rank=2')}
    assert place[4:] == [(method, best[method], 0., seed, ('val', 'test')) for seed in (1, 2)
                         for method in ('fixed', 'lora:rank=2')]
    assert {row['split'] for row in rows() if row['seed'] == 0} == {'val'}
    lora = next(row for row in rows() if row['method'] == 'lora:rank=2')
    assert lora['trained'] == 2 * 2 * (24 * 2 + 2 * 24) and lora['steps'] == 4 and 0 <= lora['value'] <= 100
    table = capsys.readouterr().out
    assert 'lora:rank=2' in table and '384' in table
    assert table.count('the best rate is the ') == len(set(best.values()))
    count = len(place)
    assert swept('--methods', 'fixed,lora:rank=2', '--seeds', '1', '2', '--tune') == 0 and len(place) == count
    assert swept('--methods', 'fixed', '--seeds', '3') == 0             # without --tune the config's own rate
    assert place[count:] == [('fixed', None, None, 3, ('val', 'test'))]
    last = [row for row in rows() if row['seed'] == 3]
    assert [(row['rate'], row['weight_decay'], row['split']) for row in last] == [
        (1e-3, 0.1, 'val'), (1e-3, 0.1, 'test')]


def test_a_best_rate_at_the_end_of_those_tried_is_said(place):
    task = sweep.load_task(Path('colours.py'))
    task = sweep.dataclasses.replace(task, rates=(1e-3, 1e-4, 1e-2), rates_of=(('full', (1e-5, )), ('lora', (1., 2.))))
    pairs = [(task, method) for method in ('fixed', 'bitfit', 'ssf', 'full', 'lora:rank=2', 'gps')]
    best = dict(zip(('fixed', 'bitfit', 'ssf', 'full', 'lora:rank=2'), (1e-2, 1e-3, 1e-4, 1e-5, 2.)))      # gps failed
    assert list(sweep.at_the_end(pairs, {('colours', method): (rate, 0.) for method, rate in best.items()})) == [
        f'colours: the best rate is the {end} one tried for {methods}; add others to sweep.rates of the config, what '
        'was run is kept' for end, methods in (('smallest', 'ssf'), ('largest', 'fixed, lora:rank=2'))]


def test_decays_are_tried_with_the_best_rate(place, tmp_path):
    (tmp_path / 'colours.py').write_text(CONFIG.replace('weight_decays=[0.0]', 'weight_decays=[0.0, 0.5]'))
    assert swept('--methods', 'fixed', '--seeds', '1', '--tune') == 0
    best = max(rows()[:2], key=lambda row: row['value'])['rate']
    assert [run[1:4] for run in place] == [(1e-4, 0., 0), (1e-2, 0., 0), (best, 0.5, 0), (best, place[-1][2], 1)]


def test_a_method_may_have_rates_of_its_own(place, tmp_path):
    (tmp_path / 'colours.py').write_text(CONFIG.replace('sweep = dict(', 'sweep = dict(rates_of=dict(fixed=[1e-3]), '))
    assert swept('--methods', 'fixed:train_out_norms=True,bitfit', '--seeds', '1', '--tune') == 0
    assert [(run[0], run[1]) for run in place[:3]] == [
        ('fixed:train_out_norms=True', 1e-3), ('bitfit', 1e-4), ('bitfit', 1e-2)]


def test_a_backbone_may_train_at_a_share_of_the_rate(place, tmp_path, monkeypatch):
    (tmp_path / 'colours.py').write_text(CONFIG.replace('sweep = dict(', 'sweep = dict(backbone_rate=dict(full=0.1), '))
    runners = []
    monkeypatch.setattr('e3va.command.processes.build_runner', lambda cfg, build=build_runner: runners.append(
        build(cfg)) or runners[-1])
    assert swept('--methods', 'full,bitfit', '--seeds', '1') == 0
    for runner, share in zip(runners, (0.1, 1)):
        rates = {parameter: group['initial_lr' if 'initial_lr' in group else 'lr']
                 for group in runner.optim_wrapper.param_groups for parameter in group['params']}
        assert rates[runner.model.head.layers.head.weight] == 1e-3
        assert rates[runner.model.backbone.layers[0].attn.qkv.bias] == pytest.approx(1e-3 * share)
    assert [(row['rate'], row.get('backbone_rate')) for row in rows()] == [(1e-3, None)] * 2 + [(1e-3, 0.1)] * 2


def test_the_rows_are_of_the_config_as_it_is(place, tmp_path):
    """A run of before an edit stands in its folder, and is no second value of its seed in the rows."""
    for old, new in ('', ''), ('max_epochs=2', 'max_epochs=1'):
        (tmp_path / 'colours.py').write_text(CONFIG.replace(old, new))
        assert swept('--methods', 'fixed', '--seeds', '1') == 0
    assert len(place) == 2 and [row['steps'] for row in rows()] == [2, 2]
    (tmp_path / 'others.py').write_text(CONFIG)
    with pytest.raises(SystemExit):
        sweep.main(['others.py', '--workers', '1', '--out', 'out', '--methods', 'fixed', '--seeds', '1'])
    assert {row['task'] for row in rows()} == {'colours', 'others'}     # those of other commands stay,
    assert {row['steps'] for row in rows() if row['task'] == 'colours'} == {2}  # of its last state
    assert swept('--methods', 'fixed', '--seeds', '1', '--tune') == 0
    count = len(rows())
    (tmp_path / 'colours.py').write_text(CONFIG.replace('rates=[1e-4, 1e-2]', 'rates=[1e-3]').replace(
        'weight_decays=[0.0]', 'weight_decays=[0.1]').replace('max_epochs=2', 'max_epochs=1'))
    assert swept('--methods', 'fixed', '--seeds', '1', '--tune') == 0           # what is tried may be the config's own
    found = list(map(identity, rows()))
    assert len(set(found)) == len(found) == count + 1                   # once: nothing reads a row that is there twice


def test_a_task_without_a_val_split(place, tmp_path, capsys):
    """Scored on test once; nothing is chosen by that, but by what `choose` puts there: two images of six."""
    text = CONFIG + 'val_dataloader = test_dataloader\n'
    (tmp_path / 'colours.py').write_text(text)
    assert swept('--methods', 'fixed', '--seeds', '1') == 0
    assert place == [('fixed', None, None, 1, ('test', ))] and [row['split'] for row in rows()] == ['test']
    assert swept('--methods', 'fixed', '--tune') not in (0, None)
    assert 'colours.py: val is the test split' in capsys.readouterr().err
    apart = "sweep = dict(choose={'val_dataloader.dataset.indices': 2}, "
    (tmp_path / 'colours.py').write_text(text.replace('sweep = dict(', apart))
    assert swept('--methods', 'fixed', '--seeds', '1', '--tune') == 0
    assert sorted(row['split'] for row in rows()) == ['test', 'val', 'val']
    files = [Config.fromfile(path) for path in sorted(Path('out').rglob('vis_data/config.py'))]
    indices = {(cfg.randomness.seed, cfg.val_dataloader.dataset.indices, cfg.test_dataloader.dataset.indices)
               for cfg in files if cfg.optim_wrapper.optimizer.lr in (1e-4, 1e-2)}
    assert indices == {(0, 2, 6), (1, 6, 6)}


def test_the_jobs_of_an_array_share_out_the_pairs(place, monkeypatch):
    for job in (4, 7):
        for name, value in dict(ID=job, MIN=4, MAX=7, COUNT=2, STEP=3).items():
            monkeypatch.setenv(f'SLURM_ARRAY_TASK_{name}', str(value))
        assert swept('--methods', 'fixed,bitfit,lora:rank=2', '--seeds', '1') == 0
    assert [(run[0], run[3]) for run in place] == [('fixed', 1), ('lora:rank=2', 1), ('bitfit', 1)]


@pytest.mark.parametrize('first, last, step, count', [(0, 15, 1, 16), (1, 4, 1, 4), (3, 5, 2, 2), (0, 7, 3, 3)])
def test_every_pair_is_in_one_job_of_an_array(monkeypatch, first, last, step, count):
    """As sbatch sets them for --array=first-last:step."""
    jobs = []
    for job in range(first, last + 1, step):
        for name, value in dict(ID=job, MIN=first, MAX=last, COUNT=count, STEP=step).items():
            monkeypatch.setenv(f'SLURM_ARRAY_TASK_{name}', str(value))
        jobs.append(sweep.mine(list(range(11))))
    assert len(jobs) == count and sorted(sum(jobs, [])) == list(range(11))


def test_an_array_that_is_a_list_is_refused(monkeypatch):
    for name, value in dict(ID=1, MIN=1, MAX=7, COUNT=3, STEP=1).items():      # --array=1,3,7
        monkeypatch.setenv(f'SLURM_ARRAY_TASK_{name}', str(value))
    with pytest.raises(ValueError, match='3 jobs from 1 to 7 by steps of 1: give a range, such as --array=0-2'):
        sweep.mine([1])


@pytest.mark.parametrize('task, method', [
    ('vtab_cifar_vit_b', 'gps'), ('fgvc_nabirds_swin_b', 'gps'), ('vtab_dtd_vit_b', 'lora'),
    ('kvasir_sam_vit_b', 'gps')])
def test_a_methods_settings_for_a_task_hold_as_in_train(task, method):
    """The paper's batch, weights, K and optimizer: a sweep runs what train.py runs."""
    args = run_parser('').parse_args([str(TASKS / f'{task}.py'), '--method', method])
    stock, cfg = read_config(args), sweep.configured(args.config, method)[0]
    stock.pop('sweep')
    assert cfg.to_dict() == stock.to_dict()


def test_a_worker_that_was_told_to_end_has_not_made_its_run(place, monkeypatch, tmp_path):
    """SIGTERM: it saves a checkpoint and ends with 0. A real process in the worker's place."""
    monkeypatch.setattr(sweep, '__file__', str(tmp_path / 'worker.py'))
    (tmp_path / 'worker.py').write_text('import sys\nprint("step")\nsys.exit(int(sys.argv[3][1:]))\n')
    pool = sweep.Pool(1)
    for method, status, said in ('x0', -15, 'error: killed by signal 15'), ('x3', 3, 'step'):
        run = sweep.Run('colours.py', 'colours', method, None, None, 1, ('val', 'test'), tmp_path / 'out/run')
        assert START(pool, run, 0, lambda text: None) == status
        assert sweep.last_line(run.folder) == said


def test_what_results_depend_on_is_in_the_folders_name(place, tmp_path):
    """By what a run is scored, its method's file; two files of one name are two methods. What is tried is not."""
    def folder(text=CONFIG, method='fixed'):
        (tmp_path / 'colours.py').write_text(text)
        return sweep.run_of(sweep.load_task(Path('colours.py')), method, 1e-3, 0., 1, ('val', 'test'), 'out').folder

    texts = [CONFIG, *(CONFIG.replace("score='accuracy/top1'", new) for new in (
        "score='accuracy/top2'", "score='accuracy/top1', times=100",
        "score='accuracy/top1', choose={'val_dataloader.dataset.indices': 2}")), CONFIG.replace('lr=1e-3', 'lr=2e-3')]
    assert len(set(map(folder, texts))) == len(texts)
    assert folder() == folder(CONFIG.replace('rates=[1e-4, 1e-2]', 'rates=[1e-4]'))
    (tmp_path / 'my').mkdir()
    found = []
    for name, rank in ('my/lora.py', 2), ('my_lora.py', 4), ('my_lora.py', 8):
        (tmp_path / name).write_text(f"method = dict(type='LoRA', rank={rank})")
        found.append(folder(method=name))
    assert len(set(found)) == 3


def test_rates_are_of_a_methods_bare_name():
    task = sweep.Task('t', 't.py', '', (1., ), (0., ), False, True, (('full', (2., )), ), (('full', 0.1), ))
    for method in 'full', 'full-cp', 'full:train_out_norms=True', 'configs/methods/full.py', 'my/full.py:also=["x.y"]':
        assert (task.tried(method), task.backbone(method)) == ((2., ), 0.1)
    assert (task.tried('my_full.py'), task.backbone('fuller')) == ((1., ), 1)


@pytest.mark.parametrize('more, may', [
    ('val_dataloader = test_dataloader\n', False),
    ('val_dataloader = test_dataloader\nsweep.update(choose={"train_cfg.max_epochs": 1})\n', False),
    ('val_dataloader = test_dataloader\nsweep.update(choose={"val_dataloader.dataset.indices": 2})\n', True),
    ('val_dataloader = dict(test_dataloader, dataset=dict(test_dataloader["dataset"], data_root="images/"))\n', False),
    ('val_dataloader = dict(test_dataloader, dataset=dict(test_dataloader["dataset"], pipeline=steps[:]+[]))\n', False),
    ('val_dataloader = dict(test_dataloader, batch_size=1)\n', False),
    ('', True)])
def test_nothing_is_chosen_by_the_images_of_the_test(place, tmp_path, more, may):
    (tmp_path / 'colours.py').write_text(CONFIG + more)
    assert sweep.load_task(Path('colours.py')).chooses == may
    assert (swept('--methods', 'fixed', '--seeds', '1', '--tune') == 0) == may and bool(place) == may


def test_an_average_of_the_weights_is_what_is_scored(place, tmp_path):
    """An EMAHook begins anew with each run of a runner: the scores are of what it has averaged in training."""
    cfg = Config.fromfile('colours.py')
    cfg.update(custom_hooks=[dict(type='EMAHook', momentum=0.5)], work_dir=str(tmp_path / 'run'))
    runner = build_runner(cfg)
    runner.train()
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
    weights = [hook.ema_model.module.head.layers.head.weight.clone(), runner.model.head.layers.head.weight.clone()]
    assert not torch.equal(*weights)
    seen = []
    runner.model.register_forward_pre_hook(lambda model, _: seen.append(model.head.layers.head.weight.clone()))
    for split in 'val', 'test':
        assert scores_of(runner, split).keys() == {'accuracy/top1'}
    assert seen and all(torch.equal(each, weights[0]) for each in seen)
    assert torch.equal(runner.model.head.layers.head.weight, weights[1])


def test_a_share_beside_other_settings_of_the_backbone_is_refused(place, tmp_path, capsys):
    """Of two keys that fit mmengine takes the longer one: a share of 0.1 would be none, or undo a decay of 0."""
    other = 'optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict({}=dict(decay_mult=0.))), '
    for key, code in ('head', 0), ('ln1', 2):
        text = CONFIG.replace('sweep = dict(', 'sweep = dict(backbone_rate=dict(full=0.1), ')
        (tmp_path / 'colours.py').write_text(text.replace('optim_wrapper = dict(', other.format(key)))
        assert swept('--methods', 'full', '--seeds', '1') == code
        assert ('sweep.backbone_rate beside ln1 of paramwise_cfg' in capsys.readouterr().err) == bool(code)


def test_a_worker_hears_the_run_that_it_was_told():
    run = sweep.Run('a.py', 'a', 'lora:rank=2', 1e-3, 0., 0, ('val', ), Path('out/a'), 2, 0.1)
    assert sweep.heard(run.told('python tools/sweep.py a.py')) == (run, 'python tools/sweep.py a.py')


@pytest.mark.parametrize('name', [
    'vtab_dtd_vit_b', 'fgvc_cub_vit_b', 'cifar100_vit_b', 'cifar100_swin_b', 'imagenet_swin_b', 'coco_cascade_swin_l',
    'voc_retinanet_swin_l', 'ade20k_upernet_swin_l', 'kvasir_sam_vit_b'])
def test_the_papers_tasks(name, monkeypatch, tmp_path):
    """Each can be swept, and says what to get where its data is missing."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r'there is no file or folder data/[^;]*; .'):
        sweep.check_data([sweep.load_task(TASKS / f'{name}.py')])


def test_missing_data_is_one_message_of_all_tasks(monkeypatch, tmp_path):
    """What to do is said once for the tasks that it is the same for; a task whose data is there is not named."""
    monkeypatch.chdir(tmp_path)
    names = ['fgvc_cub_vit_b', 'fgvc_dogs_vit_b', 'imagenet_vit_b', 'vtab_dtd_vit_b', 'voc_retinanet_swin_l']
    tasks = [sweep.load_task(TASKS / f'{name}.py') for name in names]
    Path('data/vtab-1k').mkdir(parents=True)
    with pytest.raises(ValueError) as error:
        sweep.check_data(tasks)
    first, second = str(error.value).splitlines()
    assert [name in first for name in names] == [True, True, True, False, False] and names[4] in second
    assert first.endswith(': there is no file or folder data/fgvc, data/imagenet; configs/_base_/tasks/README.md says '
                          'where it is had')


def test_workers_keep_to_the_gpus_that_the_user_gave(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,GPU-5ba3')
    assert [card(place, 2) for place in range(3)] == ['2', 'GPU-5ba3', '2']
    for unset in (lambda name: monkeypatch.setenv(name, ''), monkeypatch.delenv):
        unset('CUDA_VISIBLE_DEVICES')
        assert [card(place, 2) for place in range(3)] == ['0', '1', '0']


def test_a_worker_is_told_its_run_and_the_command(place, monkeypatch):
    real = subprocess.Popen

    def run(command, **options):
        if command[0] != sys.executable:
            return real(command, **options)
        sweep.main(command[2:])                                         # in this process
        return SimpleNamespace(returncode=0, poll=lambda: 0)

    ends = []
    monkeypatch.setattr(sweep, 'end_with_the_sweep', lambda: ends.append(True))
    monkeypatch.setattr(sweep.Pool, 'start', START)
    monkeypatch.setattr(subprocess, 'Popen', run)
    monkeypatch.setattr(sys, 'argv', ['tools/sweep.py', 'colours.py', '--methods', 'fixed'])
    assert swept('--methods', 'fixed', '--seeds', '3', '--pictures', '2') == 0
    assert sorted(path.name for path in Path('out').rglob('pictures/*.jpg')) == ['0.jpg', '7.jpg']
    assert {(row['seed'], row['command']) for row in rows()} == {
        (3, 'python tools/sweep.py colours.py --methods fixed')}
    assert ends == [True]


def test_pictures_of_a_run_that_was_finished_without(place, capsys):
    assert swept('--methods', 'fixed', '--seeds', '3') == 0 and '--pictures' not in capsys.readouterr().out
    assert swept('--methods', 'fixed', '--seeds', '3', '4', '--pictures', '1') == 0
    said, = (line for line in capsys.readouterr().out.splitlines() if line.startswith('--pictures'))
    folder = Path(said.rpartition(': ')[2])
    assert folder.name == 'own_seed3' and folder.is_dir() and len(list(Path('out').rglob('pictures/*.jpg'))) == 1


@pytest.mark.parametrize('lines, said', [
    ([], 'starting'), (['11/29 - mmengine - INFO - dist_loss: 1'], 'starting'),
    (['x - Epoch(train)  [2][ 40/52]  lr: 9.1e-07  eta: 0:01:02  time: 0.4330  loss: 1.3'],
     'Epoch(train) [2][ 40/52], 0:01:02 left'),
    (['x - Iter(train) [ 50/160]  lr: 1e-3', 'x - Iter(val) [1/9]    eta: 0:00:01'], 'Iter(train) [ 50/160]')])
def test_where_a_run_is(tmp_path, lines, said):
    (tmp_path / 'log.txt').write_text('\n'.join(lines))
    assert sweep.where(tmp_path / 'log.txt') == said


def test_a_failed_run_is_named_and_the_others_are_made(place, monkeypatch, capsys):
    def start(self, run, place, say):
        run.folder.mkdir(parents=True, exist_ok=True)
        if run.method == 'fixed':
            (run.folder / 'log.txt').write_text('step 1\nerror: out of memory\nstep 1 of another one\n')
            return 2
        run.result.write_text(json.dumps([
            dict(task=run.task, method=run.method, seed=run.seed, value=50., split=split, rate=1e-3, weight_decay=0.,
                 trained=1, saved_mib=0., train_s=1.) for split in run.splits]))
        return 0

    monkeypatch.setattr(sweep.Pool, 'start', start)
    assert swept('--methods', 'fixed,lora', '--seeds', '1') == 1
    out = capsys.readouterr().out
    assert 'failed: colours fixed seed 1: error: out of memory' in out and '50.00' in out


def test_a_choice_waits_for_a_run_that_was_killed(place, monkeypatch, capsys):
    """And no seed is spent meanwhile; it does without one that ended by an error of its own, as what diverges does."""
    make, killed = sweep.Pool.start, -9

    def start(self, run, place, say):
        if run.rate == 1e-2 and killed:
            run.folder.mkdir(parents=True, exist_ok=True)
            (run.folder / 'log.txt').write_text('error: said\n')
            return killed
        return make(self, run, place, say)

    monkeypatch.setattr(sweep.Pool, 'start', start)
    assert swept('--methods', 'fixed', '--seeds', '1', '--tune') == 1
    assert [run[1:4] for run in place] == [(1e-4, 0., 0)] and len(rows()) == 1
    assert 'colours fixed: nothing is chosen, so no seed was run' in capsys.readouterr().out
    killed = 2
    assert swept('--methods', 'fixed', '--seeds', '1', '--tune') == 1
    assert [run[1:4] for run in place[1:]] == [(1e-4, 0., 1)]


def test_real_workers(place, monkeypatch, tmp_path):
    """The protocol by processes as a user has them: a choice by its own part of the images, then a seed."""
    monkeypatch.setattr(sweep.Pool, 'start', START)
    monkeypatch.setattr(sys, 'argv', ['tools/sweep.py', 'colours.py'])
    text = CONFIG.replace('rates=[1e-4, 1e-2]', "rates=[1e-2], choose={'val_dataloader.dataset.indices': 2}")
    (tmp_path / 'colours.py').write_text(text)
    assert swept('--methods', 'fixed', '--seeds', '1', '--tune') == 0
    assert {(row['seed'], row['split'], row['rate']) for row in rows()} == {
        (0, 'val', 1e-2), (1, 'val', 1e-2), (1, 'test', 1e-2)}
    assert {row['command'] for row in rows()} == {'python tools/sweep.py colours.py'}
    files = [Config.fromfile(path) for path in Path('out').rglob('vis_data/config.py')]
    assert {(cfg.randomness.seed, cfg.val_dataloader.dataset.get('indices')) for cfg in files} == {(0, 2), (1, None)}


def test_a_worker_ends_with_the_sweep():
    """However that was killed: its end of the pipe is closed then. A usual end is none of that."""
    pipe = subprocess.PIPE
    code = (f'import sys, time; sys.path[:0] = {sys.path!r}; from tests.conftest import tool\n'
            'tool("sweep.py").end_with_the_sweep(); print("begun", flush=True); time.sleep(float(sys.argv[1]))')
    long, short = (subprocess.Popen([sys.executable, '-c', code, seconds], stdin=pipe, stdout=pipe)
                   for seconds in ('100', '0.5'))
    assert long.stdout.readline() == b'begun\n' and short.wait(30) == 0 and long.poll() is None
    long.stdin.close()
    assert long.wait(30) == 1


@pytest.mark.parametrize('arguments, words', [
    (['--methods', 'fixed', '--tune', '--seeds', '0'], 'with --tune seed 0 is that of the choice'),
    (['--methods', 'fixed', '--seeds', '1', '1'], '--seeds takes different numbers'),
    (['--methods', 'fixed', '--workers', '0'], '--workers takes a number of at least 1'),
    (['--methods', 'fixd'], "unknown method 'fixd'; near: fixed"),
    (['--methods', 'lora:rnak=2'], "method LoRA has no option 'rnak'")])
def test_wrong_arguments(place, capsys, arguments, words):
    assert swept(*arguments) not in (0, None)
    assert words in capsys.readouterr().err and not place


def test_what_another_sweep_has_made_is_left(place, monkeypatch, tmp_path):
    """Two sweeps into one folder: a run that ended while its worker started, or while it waited for one."""
    assert swept('--methods', 'fixed', '--seeds', '1') == 0
    task = sweep.load_task(Path('colours.py'))
    run = sweep.run_of(task, 'fixed', None, None, 1, ('val', 'test'), 'out')
    before = run.result.read_bytes()
    sweep.train(run, 'another command')
    assert run.result.read_bytes() == before

    def start(self, run, place, say):
        started.append(run.method)
        for method in ('fixed', 'bitfit'):                              # the other sweep makes both
            path = sweep.run_of(task, method, None, None, 2, run.splits, 'out').result
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(before)
        return 0

    started = []
    monkeypatch.setattr(sweep.Pool, 'start', start)
    assert swept('--methods', 'fixed,bitfit', '--seeds', '2') == 0
    assert started == ['fixed']


def test_two_tasks_of_one_name(place, tmp_path, capsys):
    """Their rates would be one another's, and their rows the same."""
    (tmp_path / 'more').mkdir()
    (tmp_path / 'more/colours.py').write_text(CONFIG)
    with pytest.raises(SystemExit):
        sweep.main(['colours.py', 'more', '--methods', 'fixed', '--out', 'out'])
    assert 'colours.py, more/colours.py: a name is a task in the rows' in capsys.readouterr().err and not place


def test_checkpointing_is_asked_of_the_trunk(place, capsys):
    """`-cp` as of cost.py; here the trunk has none."""
    assert swept('--methods', 'full-cp', '--seeds', '1') not in (0, None)
    assert 'full-cp: the trunk VisionTransformer has no option with_cp' in capsys.readouterr().err


@pytest.mark.parametrize('old, new, words', [
    ("sweep = dict(score='accuracy/top1', ", 'sweep = dict(', 'colours.py says no sweep = dict(score='),
    ("data_root='images'", "data_root='gone'", 'colours.py: there is no file or folder gone'),
    ('data_root=', "ann_file='gone.txt', data_root=", 'colours.py: there is no file or folder images/gone.txt'),
    ('test_dataloader = dict(', 'other = dict(', 'colours.py has no test_dataloader with a dataset'),
    ('train_cfg = dict(', 'val_dataloader = None\ntrain_cfg = dict(', 'colours.py has no val_dataloader')])
def test_a_task_that_cannot_be_run(place, tmp_path, capsys, old, new, words):
    (tmp_path / 'colours.py').write_text(CONFIG.replace(old, new))
    assert swept('--methods', 'fixed') not in (0, None)
    assert words in capsys.readouterr().err and not place


def test_scores():
    """A detector that finds nothing has none; a split without an object has -1 of COCO's."""
    assert sweep.score({'coco/bbox_mAP': 0.5}, 'coco/bbox_mAP', 'val') == 0.5
    assert sweep.score({}, 'coco/bbox_mAP', 'val') == 0
    with pytest.raises(ValueError, match="sweep.score is 'mAP', and the val evaluator gives coco/bbox_mAP"):
        sweep.score({'coco/bbox_mAP': 0.5}, 'mAP', 'val')
    with pytest.raises(ValueError, match='the test split has no score coco/bbox_mAP: there is no object in it'):
        sweep.score({'coco/bbox_mAP': -1.}, 'coco/bbox_mAP', 'test')
    with pytest.raises(ValueError, match='mIoU of the val split is nan: has the training diverged'):
        sweep.score({'mIoU': float('nan')}, 'mIoU', 'val')              # which no other score would be above


def test_an_error_of_our_own_ends_the_sweep(place, monkeypatch):
    def start(self, run, place, say):
        raise OSError('No space left on device')

    monkeypatch.setattr(sweep.Pool, 'start', start)
    with pytest.raises((OSError, SystemExit)):
        sweep.main(['colours.py', '--workers', '1', '--out', 'out', '--methods', 'fixed,lora', '--seeds', '1'])
