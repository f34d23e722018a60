"""Tables of settings beside method files: a task's row comes behind the method and before --cfg-options."""
from pathlib import Path

import pytest
import yaml

import e3va  # noqa: F401 `mmpretrain::` resolves
from e3va.command.config import load_config
from e3va.command.line import config_parser, read_config

ROOT = Path(__file__).parents[2]
TASKS = ROOT / 'configs/_base_/tasks'
TABLES = sorted((ROOT / 'configs/methods').glob('*.yml'))
TASK = '''
suite, task = 'birds', '{task}'
model = dict(backbone=dict(type='VisionTransformer', drop_path_rate=0.1))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
train_dataloader = dict(batch_size=64)
param_scheduler = [dict(type='LinearLR'), dict(type='CosineAnnealingLR', eta_min=1e-5)]
'''
TABLE = '''
birds:
  all:
    param_scheduler.1.eta_min: 1.0e-8
    optim_wrapper.optimizer.lr: 1.0e-2
  columns: [optim_wrapper.optimizer.lr, model.backbone.method.rank, train_dataloader.batch_size]
  rows:
    robins: [3.0e-2, 2, 16]
    wrens: [3.0e-2, 2]
'''
CONFIGS = dict(robins=TASK.format(task='robins'), crows=TASK.format(task='crows'), wrens=TASK.format(task='wrens'),
               alone=TASK.format(task='').replace("suite, task = 'birds', ''", ''),
               mine="method = dict(type='LoRA', rank=8)\noptim_wrapper = dict(optimizer=dict(lr=1.))")


def parse(*arguments):
    return read_config(config_parser('').parse_args(arguments))


@pytest.fixture
def folder(config_folder):
    Path('mine.yml').write_text(TABLE)


def settings(cfg):
    return (cfg.optim_wrapper.optimizer.lr, cfg.model.backbone.method.rank, cfg.train_dataloader.batch_size,
            cfg.param_scheduler[1].eta_min)


@pytest.mark.parametrize('task, expected', [
    ('robins', (3e-2, 2, 16, 1e-8)),            # its row, over what holds for all, over the method's own
    ('crows', (1e-2, 8, 64, 1e-8)),             # no row
    ('alone', (1., 8, 64, 1e-5)),               # no suite
])
def test_a_task_s_row_comes_last(folder, task, expected):
    assert settings(parse(f'{task}.py', '--method', 'mine.py')) == expected


def test_options_come_behind_the_table(folder):
    cfg = parse('robins.py', '--method', 'mine.py', '--cfg-options', 'model.backbone.method.rank=5')
    assert settings(cfg) == (3e-2, 5, 16, 1e-8)


def test_no_table_changes_nothing(config_folder):
    assert settings(parse('robins.py', '--method', 'mine.py')) == (1., 8, 64, 1e-5)


def test_a_table_serves_what_builds_on_its_method_file(folder):
    Path('child.py').write_text("_base_ = './mine.py'\nmethod = dict(alpha=4.)")
    assert settings(parse('robins.py', '--method', 'child.py')) == (3e-2, 2, 16, 1e-8)
    Path('child.yml').write_text(TABLE.replace('16]', '8]'))
    assert settings(parse('robins.py', '--method', 'child.py')) == (3e-2, 2, 8, 1e-8)


def test_a_row_that_does_not_fit_is_named(folder):
    with pytest.raises(ValueError, match='mine.yml, birds wrens: 2 values for 3 columns'):
        parse('wrens.py', '--method', 'mine.py')


@pytest.mark.parametrize('file', TABLES, ids=lambda file: file.stem)
def test_tables_name_tasks_and_keys_that_exist(file):
    for suite, table in yaml.safe_load(file.read_text()).items():
        tasks = {cfg.get('task'): cfg for cfg in map(load_config, TASKS.glob(f'{suite}_*vit_b.py'))}
        rows = table.get('rows', {None: []})                            # a suite of one task has none
        assert set(rows) == set(tasks), suite
        for task, row in rows.items():
            values = {**table.get('all', {}), **dict(zip(table.get('columns', []), row, strict=True))}
            for key, value in values.items():
                text = key.endswith(('.checkpoint', '.type'))
                assert isinstance(value, str) == text, f'{key}: {value!r}; YAML reads 1.0e-3 as a number, 1e-3 as text'
                if key.startswith('model.backbone.method.'):
                    continue
                node = tasks[task]
                for part in key.split('.'):
                    assert part.isdecimal() or part in node, f'{suite} {task}: {key}'
                    node = node[int(part) if part.isdecimal() else part]
                assert type(node) is type(value) or {type(node), type(value)} == {int, float}, key


@pytest.mark.parametrize('task, batch, rate, k, drop_path', [
    ('vtab_patch_camelyon', 32, 4e-3, 2, 0.), ('vtab_smallnorb_ele', 32, 3e-4, 1, 0.2),
    ('fgvc_nabirds', 32, 1e-4, 20, 0.1), ('fgvc_dogs', 64, 1e-4, 1, 0.)])
def test_gps_takes_its_authors_settings(task, batch, rate, k, drop_path):
    cfg = parse(str(TASKS / f'{task}_vit_b.py'), '--method', 'gps')
    backbone = cfg.model.backbone
    assert (cfg.train_dataloader.batch_size, cfg.optim_wrapper.optimizer.lr) == (batch, rate)
    assert (backbone.method, backbone.drop_path_rate) == (dict(type='GPS', k=k), drop_path)
    assert backbone.init_cfg.checkpoint == 'timm://vit_base_patch16_224.augreg_in21k'
    assert cfg.data_preprocessor.mean == cfg.data_preprocessor.std == [127.5] * 3
    assert cfg.param_scheduler[1].eta_min == 1e-8
    assert cfg.optim_wrapper == dict(type='e3va.GPSOptimWrapper', optimizer=dict(type='Adam', lr=rate, weight_decay=0.))


@pytest.mark.parametrize('method, option, of', [('bi_lora', 'alpha', 32), ('bi_adaptformer', 'scale', 1)])
def test_binary_adapters_take_their_authors_scales(method, option, of):
    """s of the authors' files, in which LoRA's alpha is s times the rank; inputs from 0 to 1."""
    for task, s in (('dtd', 0.01), ('caltech101', 10.), ('smallnorb_ele', 1.), ('clevr_dist', 0.1)):
        cfg = parse(str(TASKS / f'vtab_{task}_vit_b.py'), '--method', method)
        assert cfg.model.backbone.method[option] == pytest.approx(of * s) and cfg.model.backbone.method.bits == 1
        assert (cfg.data_preprocessor.mean, cfg.data_preprocessor.std) == ([0] * 3, [255] * 3)


@pytest.mark.parametrize('method', ['dmlora', 'dmlora_scheme_b'])
@pytest.mark.parametrize('suite, count', [('vtab', 19), ('fgvc', 5)])
def test_dmlora_has_a_row_for_each_task(method, suite, count):
    """The paper's 64 images; n and s are public for no task: the method file's, until one chooses."""
    files = sorted(TASKS.glob(f'{suite}_*_vit_b.py'))
    assert len(files) == count
    for file in files:
        cfg = parse(str(file), '--method', method)
        own, tuned = cfg.default_hooks.dmlora, cfg.model.backbone.method
        assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (64, 64)
        assert (tuned.rank, tuned.branches, tuned.scale) == (8, 8, 1.) and 'roles' not in tuned     # q and v
        assert (own.halving, own.scale_length) == (('dropout', 0.1) if method == 'dmlora' else ('average', None))
        assert (own.every, cfg.train_cfg.max_epochs) == (0.1, 100)      # halved to 4, 2 and 1 within the run


def test_ablations_of_gps_take_its_settings():
    """Table 6 of the paper changes one thing at a time."""
    for method, differs in [('gps_layer', dict(level='layer')), ('gps_mask', dict(mode='mask')), ('gps_ce', {}),
                            ('gps_net_random', dict(level='net', criterion='random'))]:
        cfg = parse(str(TASKS / 'fgvc_cub_vit_b.py'), '--method', method)
        assert cfg.model.backbone.method == dict(type='GPS', k=2, **differs)
        assert cfg.optim_wrapper.optimizer == dict(type='Adam', lr=3e-3, weight_decay=0.)
        assert cfg.default_hooks.gps.get('loss') == ('task' if method == 'gps_ce' else None)


@pytest.mark.parametrize('method', ['pear_bi_lora', 'pear_bi_lora_sba', 'vp_bi_lora'])
def test_pear_takes_the_scales_of_what_it_prunes(method):
    ours, theirs = (parse(str(TASKS / 'vtab_dtd_vit_b.py'), '--method', name) for name in (method, 'bi_lora'))
    assert ours.model.backbone.method == theirs.model.backbone.method
    assert ours.data_preprocessor == theirs.data_preprocessor
    hook = ours.default_hooks.pear
    assert (hook.warmup, hook.ratio) == (0.1, 0.5) and ours.optim_wrapper.type == 'e3va.PearOptimWrapper'
    assert (hook.get('checkpoint'), hook.get('share', True)) == ('sba' if 'sba' in method else None, 'vp' not in method)
