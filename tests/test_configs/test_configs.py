"""Every file under configs/: it loads, names things that exist, and trains and validates one step at reduced width."""
import copy
import functools
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner

import e3va  # noqa: F401 `mmseg::` and the prefix `e3va.` resolve
from e3va.command.config import apply_method, load_method
from e3va.datasets import fgvc, synthetic, vtab
from e3va.dmlora.method import Branches
from e3va.methods import build_method

from .reduce import reduce

ROOT = Path(__file__).parents[2]
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*.py'))
METHODS = [name for name in FILES if '/methods/' in name]
PARTS = [name for name in FILES if re.match('configs/_base_/(models|schedules|suites)/', name)]
RUNS = [name for name in FILES if name not in METHODS + PARTS]
TASKS = [name for name in RUNS if name.startswith('configs/_base_/tasks/')]
# Of VTAB and FGVC one task for each model: the others' names of data and numbers of classes are tested on their own.
STEPS = [name for name in RUNS if not re.search('/vtab_(?!cifar_)|/fgvc_(?!cub_)', name)]

# What belongs to a paper's folder: its configs, and most papers' method files.
PAPERS = dict(
    e3va=('configs/e3va/', 'configs/methods/e3va'), gps=('configs/gps/', 'configs/methods/gps'),
    dmlora=('configs/dmlora/', 'configs/methods/dmlora'),
    pear=('configs/pear/', 'configs/methods/pear', 'configs/methods/vp_'))

# Lists of weights that the installed libraries do not quote: mmclassification's table of Swin from ImageNet-21k.
PUBLIC = ['https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/swin-base_3rdparty_in21k.pth']


@functools.cache
def read(name):
    return Config.fromfile(ROOT / name)


def load(name):
    return copy.deepcopy(read(name))


# ---- what a file says

@pytest.mark.parametrize('name', METHODS)
def test_method_file_names_a_method(name):
    cfg = load_method(str(ROOT / name))
    assert set(cfg) <= {'method', 'default_hooks', 'optim_wrapper'}
    build_method(cfg.method)


@pytest.mark.parametrize('name', RUNS)
def test_backbone_resolves(name):
    cfg = load(name)
    backbone = cfg.model.backbone
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        assert registry.get(backbone.type) is not None
        assert registry.get(backbone.get('trunk', backbone.type)) is not None
    if 'method' in backbone:
        assert cfg.method == backbone.method                   # what the file shows is what is built
        build_method(backbone.method)
    if name in TASKS:
        kinds = ('SwinTransformer', 'VisionTransformer', 'ConvNeXt', 'mmpretrain.ViTSAM')
        assert backbone.type in kinds and 'method' not in cfg


@pytest.mark.parametrize('name', [name for name in TASKS if '_swin_' in name])
def test_neck_and_heads_have_the_trunks_widths(name):
    model = load(name).model
    width = model.backbone.get('embed_dims', 128)               # mmpretrain says arch='base'
    widths = [width << i for i in range(4)]
    given = [widths[i] for i in model.backbone.get('out_indices', [3])]
    reader = model.neck if 'in_channels' in model.get('neck', {}) else model.get('decode_head', model.get('head'))
    assert reader.in_channels in (given, given[-1])
    assert model.get('auxiliary_head', dict(in_channels=widths[2])).get('in_channels') == widths[2]
    assert [heads * 32 for heads in model.backbone.get('num_heads', [4, 8, 16, 32])] == widths


@pytest.mark.parametrize('name', FILES)
def test_first_lines_say_how_to_run(name):
    header, = re.match(r'((?:#.*\n)+)', (ROOT / name).read_text()).groups()
    commands = re.findall(r'configs/\S+\.py', header)
    assert all((ROOT / command).is_file() for command in commands)
    if name in PARTS:
        assert 'Source:' in header
    elif not name.startswith(('configs/methods/', 'configs/demo/', 'configs/bench/')):
        assert commands[0] == name
        assert 'not measured' in header and 'Source:' in header


@pytest.mark.parametrize('name', [name for name in RUNS if not name.startswith(('configs/demo/', 'configs/bench/'))])
def test_weights_are_public(name):
    import mmdet
    import mmpretrain
    import mmseg
    import timm
    from timm.models import swin_transformer
    cfg = load(name)
    if cfg.model.backbone.get('pretrained'):
        assert cfg.model.backbone.name in timm.list_pretrained()
        return
    url = cfg.load_from if cfg.get('suite') == 'kvasir' else cfg.model.backbone.init_cfg.checkpoint
    if url.startswith('timm://'):
        assert url.removeprefix('timm://') in timm.list_pretrained()
        return
    places = [Path(swin_transformer.__file__)]
    for library in (mmdet, mmseg, mmpretrain):
        folder = Path(library.__file__).parent / '.mim' / 'configs'
        places += [*folder.glob('swin*/*.py'), *folder.glob('convnext/metafile.yml'), *folder.glob('sam/metafile.yml')]
    assert url in PUBLIC or any(url in place.read_text() for place in places)


@pytest.mark.parametrize('folder', PAPERS)
def test_metafile_names_the_files(folder):
    meta = yaml.safe_load((ROOT / f'configs/{folder}/metafile.yml').read_text())
    listed = [model['Config'] for model in meta['Models']]
    files = [name for name in FILES if name.startswith(PAPERS[folder])]
    assert sorted(listed) == files, f'Models in configs/{folder}/metafile.yml: {sorted(set(listed) ^ set(files))}'
    assert all(model['Name'] == Path(model['Config']).stem for model in meta['Models'])
    assert {model['In Collection'] for model in meta['Models']} == {entry['Name'] for entry in meta['Collections']}
    assert not any('Results' in model for model in meta['Models'])      # no number of ours is measured
    assert f'configs/{folder}/metafile.yml' in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']


def test_mims_library_reads_the_index():
    loaded = pytest.importorskip('modelindex.load_model_index').load(str(ROOT / 'model-index.yml'))
    loaded.build_models_with_collections()
    listed = [model.config for model in loaded.models]
    assert len(set(listed)) == len(listed) > 100 and all((ROOT / name).is_file() for name in listed)
    methods = {f'configs/methods/{path.name}' for path in (ROOT / 'configs/methods').glob('*.py')}
    assert methods <= set(listed), f'in no metafile: {sorted(methods - set(listed))}'
    assert {entry.name for entry in loaded.collections} == {model.in_collection for model in loaded.models}


@pytest.mark.parametrize('folder', PAPERS)
def test_readme_names_the_files(folder):
    text = (ROOT / f'configs/{folder}/README.md').read_text()
    links = re.findall(r'\]\(([^)]*\.py)\)', text)
    assert links and all((ROOT / 'configs' / folder / link).is_file() for link in links)
    linked = {str((ROOT / 'configs' / folder / link).resolve().relative_to(ROOT)) for link in links}
    left = {name for name in FILES if name.startswith(PAPERS[folder])} - linked
    assert not left, f'configs/{folder}/README.md: add a link to {sorted(left)}'


# ---- the suites

def stated(name):
    """What a task file's header says: classes, training images, test images."""
    numbers = re.search(r'(\d+) classes, ([\d,]+) training and ([\d,]+) test images', (ROOT / name).read_text())
    return tuple(int(number.replace(',', '')) for number in numbers.groups())


def splits(cfg):
    return [cfg[f'{stage}_dataloader'].dataset.split for stage in ('train', 'val', 'test')]


def classes(cfg):
    return {cfg.model.head.num_classes, cfg.data_preprocessor.get('num_classes', cfg.model.head.num_classes)}


def test_vtab_has_its_nineteen_tasks():
    assert [name for name in TASKS if '/vtab_' in name] == sorted(
        f'configs/_base_/tasks/vtab_{task}_vit_b.py' for task in vtab.TASKS)


@pytest.mark.parametrize('task', vtab.TASKS)
def test_vtab_task(task):
    name = f'configs/_base_/tasks/vtab_{task}_vit_b.py'
    cfg, known = load(name), vtab.TASKS[task]
    assert (cfg.suite, cfg.task) == ('vtab', task) and f'VTAB-1k, {known.group}: ' in (ROOT / name).read_text()
    assert {cfg[f'{stage}_dataloader'].dataset.task for stage in ('train', 'val', 'test')} == {task}
    assert splits(cfg) == ['train800val200', 'test', 'test'] and classes(cfg) == {known.classes}
    assert stated(name) == (known.classes, 1000, known.test_images)


@pytest.mark.parametrize('task', fgvc.TASKS)
@pytest.mark.parametrize('model', ['vit_b', 'swin_b', 'convnext_b'])
def test_fgvc_task(task, model):
    name = f'configs/_base_/tasks/fgvc_{task}_{model}.py'
    cfg, known = load(name), fgvc.TASKS[task]
    assert (cfg.suite, cfg.task) == ('fgvc', task)
    assert {cfg[f'{stage}_dataloader'].dataset.task for stage in ('train', 'val', 'test')} == {task}
    assert splits(cfg) == ['train+val', 'test', 'test'] and classes(cfg) == {known.classes}
    assert stated(name) == (known.classes, known.train_images + known.val_images, known.test_images)


@pytest.mark.parametrize('name', [name for name in TASKS if re.search('vtab|fgvc', name)])
def test_a_test_set_is_seen_once(name):
    cfg = load(name)
    assert cfg.train_cfg.max_epochs == cfg.train_cfg.val_interval == cfg.param_scheduler[-1].end == 100
    assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin == 10
    assert 'train' not in cfg.val_dataloader.dataset.split


@pytest.mark.parametrize('name', [name for name in TASKS if re.search('(?<!sam_)vit_b|convnext_b', name)])
def test_the_head_fits_the_trunk(name):
    cfg = load(name)
    assert cfg.model.head.in_channels == dict(VisionTransformer=768, ConvNeXt=1024)[cfg.model.backbone.type]
    assert classes(cfg) == {cfg.model.head.num_classes}


def test_readme_lists_the_tasks():
    text = (ROOT / 'configs/_base_/tasks/README.md').read_text()
    for name, task in vtab.TASKS.items():
        assert f'| `{name}` | {task.group} | {task.classes} | {task.test_images:,} |' in text
    for name, task in fgvc.TASKS.items():
        sizes = ' | '.join(f'{n:,}' for n in (task.classes, task.train_images, task.val_images, task.test_images))
        assert f'| `{name}` | `{task.folder}` | {sizes} |' in text


# ---- one training and one validation step

@pytest.fixture(scope='module')
def generated(tmp_path_factory):
    """Generated data under the paths that the configs name, in a folder of its own."""
    root = tmp_path_factory.mktemp('configs')
    synthetic.make_coco(root / 'data/coco', images=2, size=(96, 128), classes=1)
    synthetic.make_voc(root / 'data/VOCdevkit', images=1)
    synthetic.make_ade20k(root / 'data/ade/ADEChallengeData2016', images=2, size=(96, 128), classes=5)
    synthetic.make_imagenet(root / 'data/imagenet', images=2, size=(64, 64), classes=2)
    synthetic.make_cifar100(root / 'data/cifar100', images=2, classes=2)
    synthetic.make_vtab(root / 'data/vtab-1k', images=2, size=(32, 48), classes=2)
    synthetic.make_fgvc(root / 'data/fgvc', images=2, size=(64, 48), classes=2)
    synthetic.make_kvasir(root / 'data/Kvasir-SEG', images=2, size=(96, 128), classes=1)
    return root


class Watch(Hook):
    """Stops the run after one training and one validation step, and keeps what they gave."""

    priority = 'VERY_LOW'

    def before_train(self, runner):
        named = dict(runner.model.named_parameters())
        self.trainable = {name for name, parameter in named.items() if parameter.requires_grad}
        runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: self.__dict__.update(
            graded={name for name, parameter in named.items() if parameter.grad is not None}))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses = {key: float(value) for key, value in outputs.items()}
        runner.train_loop.stop_training = True

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.predictions = outputs

    def after_val_epoch(self, runner, metrics=None):
        self.metrics = metrics


UNDER = {                                                       # configs of no method, and one to run them under
    'configs/dinov3/dino_vit-s_coco.py': 'e3va', 'configs/dinov3/dino_convnext-t_coco.py': 'lora',
    'configs/dinov3/mask2former_vit-s_ade20k.py': 'lora', 'configs/dinov3/mask2former_convnext-t_ade20k.py': 'e3va'}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', STEPS)
def test_trains_and_validates(name, generated, monkeypatch):
    monkeypatch.chdir(generated)
    monkeypatch.setattr(Runner, '_log_env', lambda *_: None)            # slow, and nobody reads it here: compilers and
    monkeypatch.setattr(Config, 'pretty_text', property(str))           # drivers, and a yapf run over the whole config
    cfg = load(name)
    cfg = reduce(apply_method(cfg, load_method(UNDER[name])) if name in UNDER else cfg)
    cfg.experiment_name = name.replace('/', '_')
    torch.manual_seed(0)
    runner, watch = Runner.from_cfg(cfg), Watch()
    runner.register_hook(watch)
    runner.train()

    assert watch.losses['loss'] > 0 and all(map(math.isfinite, watch.losses.values()))
    undrawn = {f'{place}.{i}' for place, branches in runner.model.named_modules() if isinstance(branches, Branches)
               for i, branch in enumerate(branches.all) if branch is not branches.drawn}
    assert watch.graded == watch.trainable - undrawn
    if 'method' in cfg.model.backbone:
        own = {key for key in watch.trainable if key.startswith('backbone.')}
        norms = {key for key in own if re.match(r'backbone\.norm\d', key)}
        tuning = runner.model.backbone.tuning
        if not tuning.method.tunes_entries:
            assert norms < own and not {key.removeprefix('backbone.') for key in own - norms} & set(tuning.keys)
        assert bool(norms) == tuning.method.train_out_norms
    given = [sample.get(key) for sample in watch.predictions for key in ('pred_instances', 'pred_sem_seg', 'pred_score')
             if key in sample]
    assert len(given) == len(watch.predictions) > 0
    assert watch.metrics
