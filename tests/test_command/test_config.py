"""Names on the command line become configs; what is wrong with them is one ValueError."""
import importlib.util
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from e3va.command import checks
from e3va.command.config import apply_method, load_config, load_method, prepare, use_amp
from e3va.command.line import config_parser, read_config
from e3va.datasets import synthetic
from tests.conftest import tool

ROOT = Path(__file__).parents[2]
RETINANET = 'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py'
STOCK = dict(
    mmdet=RETINANET,
    mmseg='mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    mmpretrain='mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py')


def parse(*arguments):
    return read_config(config_parser('').parse_args(arguments))


# ---- load_config

@pytest.mark.parametrize('library', STOCK)
def test_named_config_is_the_library_s_file(library):
    package = Path(importlib.util.find_spec(library).origin).parent
    path = package / '.mim/configs' / STOCK[library].partition('::')[2]
    assert load_config(STOCK[library])._cfg_dict == Config.fromfile(path)._cfg_dict == load_config(path)._cfg_dict


def test_own_config_by_name():
    named = load_config('e3va::methods/e3va.py')
    assert named.method == load_config(ROOT / 'configs/methods/e3va.py').method


@pytest.mark.parametrize('name, says', [
    ('mmdet::swin/retinanet_swin-t_fpn_1x_coco.py', 'near: swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py'),
    ('mmdet::swin', 'mmdet has no config swin'),
    ('mmdett::swin/x.py', "no installed library 'mmdett'"),
    ('timm::x.py', 'without its configs'),
    (str(ROOT / 'configs/methods/e4va.py'), 'near: e3va.py'),
    ('no/such/folder/x.py', 'there is no config file no/such/folder/x.py'),
])
def test_config_not_found(name, says):
    with pytest.raises(ValueError, match='(?s)' + says):
        load_config(name)


@pytest.mark.parametrize('text, says', [
    ('model = dict(', 'SyntaxError'),
    ("_base_ = './gone.py'", 'FileNotFoundError'),
    ('model = 1 / 0', 'ZeroDivisionError'),
    ("_base_ = ['./a.py', './a.py']", 'KeyError'),
])
def test_broken_config(tmp_path, text, says):
    (tmp_path / 'a.py').write_text('x = 1')
    (tmp_path / 'broken.py').write_text(text)
    with pytest.raises(ValueError, match=f'broken.py cannot be read: {says}'):
        load_config(tmp_path / 'broken.py')


# ---- load_method

def test_method_by_name_and_file(tmp_path):
    assert load_method('lora').method.type == load_method('lora.py').method.type == 'LoRA'
    (tmp_path / 'mine.py').write_text("method = dict(type='LoRA', rank=2)")
    assert load_method(str(tmp_path / 'mine.py')).method.rank == 2


@pytest.mark.parametrize('name, says', [
    ('e3av', "unknown method 'e3av'; near: .*e3va"),
    ('somewhere/lora.py', 'there is no config file somewhere/lora.py'),
    (str(ROOT / 'configs/methods/lorra.py'), 'near: lora.py'),
])
def test_no_method(name, says):
    with pytest.raises(ValueError, match=says):
        load_method(name)


def test_a_task_is_no_method(tmp_path):
    (tmp_path / 'task.py').write_text('model = dict()')
    with pytest.raises(ValueError, match='it sets no method'):
        load_method(tmp_path / 'task.py')
    (tmp_path / 'both.py').write_text("method = dict(type='LoRA')\nmodel = dict()")
    with pytest.raises(ValueError, match='it sets model, where only method'):
        load_method(tmp_path / 'both.py')


# ---- apply_method

@pytest.mark.parametrize('library', STOCK)
def test_only_the_backbone_changes(library):
    stock = load_config(STOCK[library])
    tuned = apply_method(stock, load_method('e3va'))
    backbone = tuned.model.backbone
    assert backbone.pop('trunk') == 'SwinTransformer' and backbone.pop('method') == load_method('e3va').method
    assert backbone.type == 'e3va.Tuned'
    backbone.type = 'SwinTransformer'
    assert tuned._cfg_dict == stock._cfg_dict
    assert stock._cfg_dict == load_config(STOCK[library])._cfg_dict         # the argument is left alone


def test_hooks_and_wrapper_merge():
    cfg = Config(dict(
        model=dict(backbone=dict(type='mmpretrain.ConvNeXt', arch='tiny')),
        default_hooks=dict(timer=dict(type='IterTimerHook')), custom_hooks=[dict(type='EMAHook')],
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.), clip_grad=dict(max_norm=1))))
    method = Config(dict(method=dict(type='GPS'), default_hooks=dict(gps=dict(type='e3va.GPSHook')),
                         optim_wrapper=dict(type='e3va.GPSOptimWrapper')))
    tuned = apply_method(cfg, method)
    assert tuned.model.backbone.trunk == 'mmpretrain.ConvNeXt'
    assert set(tuned.default_hooks) == {'timer', 'gps'} and tuned.custom_hooks == cfg.custom_hooks
    assert tuned.optim_wrapper == dict(cfg.optim_wrapper, type='e3va.GPSOptimWrapper')


@pytest.mark.parametrize('model, says', [
    (dict(backbone=dict(type='e3va.Tuned', method=dict(type='LoRA'))), 'a method given twice'),
    (dict(neck=dict(type='FPN')), 'backbones: none anywhere'),
    (dict(detector=dict(backbone=dict(type='ResNet'))), 'backbones: model.detector.backbone'),
    (None, 'backbones: none anywhere'),
])
def test_nothing_to_tune(model, says):
    with pytest.raises(ValueError, match=says):
        apply_method(Config(dict(model=model)), load_method('lora'))


def test_options_come_last():
    cfg = parse(RETINANET, '--method', 'lora', '--cfg-options', 'model.backbone.method.rank=3', 'custom_hooks="[1,2]"')
    assert cfg.model.backbone.method.rank == 3 and cfg.custom_hooks == [1, 2]


@pytest.mark.parametrize('option', ['model', 'model.backbone.depths.9=1', 'optim_wraper.optimizer.lr=7.', 'rank=16'])
def test_wrong_options(option, capsys):
    with pytest.raises((ValueError, SystemExit)) as error:
        parse(RETINANET, '--cfg-options', option)
    assert '--cfg-options' in str(error.value) + capsys.readouterr().err


# ---- mixed precision

@pytest.mark.parametrize('kind, twin', [
    ('OptimWrapper', 'AmpOptimWrapper'), (None, 'AmpOptimWrapper'), ('AmpOptimWrapper', 'AmpOptimWrapper')])
def test_amp_twin(kind, twin):
    cfg = use_amp(Config(dict(optim_wrapper=dict(type=kind) if kind else dict())))
    assert cfg.optim_wrapper == dict(type=twin, loss_scale='dynamic')


def test_amp_of_a_method_s_wrapper(monkeypatch):
    """A base in mixed precision stays so under a method with a wrapper of its own."""
    from e3va.registry import OPTIM_WRAPPERS
    monkeypatch.setitem(OPTIM_WRAPPERS.module_dict, 'AmpSparseOptimWrapper', object)
    cfg = Config(dict(model=dict(backbone=dict(type='A')), optim_wrapper=dict(type='AmpOptimWrapper', loss_scale=512.)))
    method = Config(dict(method=dict(type='LoRA'), optim_wrapper=dict(type='e3va.SparseOptimWrapper')))
    assert apply_method(cfg, method).optim_wrapper == dict(type='e3va.AmpSparseOptimWrapper', loss_scale=512.)


def test_no_amp_twin():
    with pytest.raises(ValueError, match='ApexOptimWrapper has no mixed-precision twin'):
        use_amp(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))))


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU trains in mixed precision')
def test_amp_config_without_gpu(capsys):
    cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=dict(type='SGD'))))
    assert prepare(cfg).optim_wrapper == dict(type='OptimWrapper', optimizer=dict(type='SGD'))
    assert 'AmpOptimWrapper is replaced' in capsys.readouterr().out


# ---- prepare

def test_hooks_of_every_run():
    stock = prepare(load_config(RETINANET))
    tuned = prepare(parse(RETINANET, '--method', 'fixed'))
    assert set(tuned.default_hooks) == set(stock.default_hooks) > {'rng_state', 'report', 'stop'}
    bare = prepare(Config(dict(model=dict(backbone=dict(type='e3va.Tuned')))))
    assert set(bare.default_hooks) == {'rng_state', 'report', 'stop', 'checkpoint'}


def test_the_checkpoint_hook_is_e3va_s():
    """mmengine's, however it is named, keeps its options; another class stays, and no hook stays none."""
    def hooks(**given):
        return prepare(Config(dict(model={}, **given)))

    ours = 'e3va.CheckpointHook'
    assert hooks().default_hooks.checkpoint == dict(type=ours, interval=1)
    options = dict(interval=2, by_epoch=False, max_keep_ckpts=1, save_best='mIoU')
    for name in ('CheckpointHook', 'mmengine.CheckpointHook', 'mmengine.hooks.checkpoint_hook.CheckpointHook'):
        cfg = hooks(default_hooks=dict(checkpoint=dict(type=name, **options), timer=dict(type='IterTimerHook')),
                    custom_hooks=[dict(type=name, interval=3), dict(type='EMAHook')])
        assert cfg.default_hooks.checkpoint == dict(type=ours, **options) and 'timer' in cfg.default_hooks
        assert cfg.custom_hooks == [dict(type=ours, interval=3), dict(type='EMAHook')]
    assert hooks(default_hooks=dict(checkpoint=None)).default_hooks.checkpoint is None


def test_another_checkpoint_hook_stays(capsys):
    own = dict(checkpoint=dict(type='mmdet.MyCheckpointHook', interval=1))
    assert prepare(Config(dict(model={}, default_hooks=own))).default_hooks.checkpoint == own['checkpoint']
    assert 'checkpoints are written by mmdet.MyCheckpointHook' in capsys.readouterr().out


def test_loader_defaults():
    pretrain = prepare(load_config(STOCK['mmpretrain'])).train_dataloader
    assert pretrain.collate_fn == dict(type='default_collate') and pretrain.persistent_workers
    assert 'collate_fn' not in prepare(load_config(RETINANET)).train_dataloader
    serial = prepare(parse(STOCK['mmpretrain'], '--cfg-options', 'train_dataloader.num_workers=0',
                           'train_dataloader.prefetch_factor=2')).train_dataloader
    assert not serial.persistent_workers and 'prefetch_factor' not in serial


# ---- checks

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return synthetic.make_coco(tmp_path_factory.mktemp('data') / 'coco', images=1, size=(32, 32), classes=3)


def checked(data, tmp_path, *options, task='train', method=()):
    loaders = [f'{stage}_dataloader.dataset.data_root={data}/' for stage in ('train', 'val', 'test')]
    annotation = f'{data}/annotations/instances_val2017.json'
    cfg = parse(RETINANET, *method, '--cfg-options', *loaders, f'val_evaluator.ann_file={annotation}',
                f'test_evaluator.ann_file={annotation}', f'work_dir={tmp_path}/run', *options)
    checks.check(cfg, task)
    return cfg


def test_complete_config_passes(data, tmp_path):
    checked(data, tmp_path)
    checked(data, tmp_path, task='test')
    checked(data, tmp_path, 'load_from=https://host/file.pth', 'train_dataloader.dataset.data_root=s3://bucket/coco/')


@pytest.mark.parametrize('option, key', [
    ('train_dataloader.dataset.data_root=gone', 'train_dataloader.dataset.data_root'),
    ('val_dataloader.dataset.ann_file=gone.json', 'val_dataloader.dataset.ann_file'),
    ('train_dataloader.dataset.data_prefix.img=gone', 'train_dataloader.dataset.data_prefix.img'),
    ('val_evaluator.ann_file=gone', 'val_evaluator.ann_file'),
    ('load_from=gone', 'load_from'),
    ('model.backbone.init_cfg.checkpoint=gone', 'model.backbone.init_cfg.checkpoint'),
])
def test_missing_files_are_named_by_key(data, tmp_path, option, key):
    with pytest.raises(ValueError, match=f'^{key}: there is no .*gone'):
        checked(data, tmp_path, option)


@pytest.mark.parametrize('options, message', [
    (['model.backbone.in_channels=1'], 'mean has 3 values, and the backbone takes images with in_channels=1:'),
    (['model.backbone.in_channels=4', 'model.data_preprocessor.mean=[0,0,0,0]'], '4 values, and .* three or one'),
    (['model.backbone.in_channels=4', 'model.data_preprocessor.mean=[0]', 'model.data_preprocessor.std=[1]'],
     'bgr_to_rgb=True turns the channels of RGB around, and the backbone takes images of 4: set it to False')])
def test_the_preprocessor_fits_the_channels(data, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        checked(data, tmp_path, *options)


def test_one_value_for_all_channels(data, tmp_path):
    checked(data, tmp_path, 'model.backbone.in_channels=4', 'model.data_preprocessor.mean=[0]',
            'model.data_preprocessor.std=[1]', 'model.data_preprocessor.bgr_to_rgb=False')


def test_wrapped_datasets_are_opened():
    cfg = load_config('mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py')
    found = [key for key, _ in checks.datasets(cfg.train_dataloader.dataset, 'train_dataloader.dataset')]
    assert found == [f'train_dataloader.dataset.dataset.datasets.{i}' for i in (0, 1)]


def test_datasets_that_download_are_let_be():
    dataset = load_config('mmpretrain::resnet/resnet18_8xb16_cifar10.py').train_dataloader.dataset
    checks.check_dataset('train_dataloader.dataset', dataset, 'mmpretrain')
    dataset.download = False
    with pytest.raises(ValueError, match='data_root: there is no data/cifar10'):
        checks.check_dataset('train_dataloader.dataset', dataset, 'mmpretrain')


def test_incomplete_config(tmp_path):
    with pytest.raises(ValueError, match='cannot train: it has no train_dataloader, train_cfg, optim_wrapper'):
        checks.check(load_config('mmdet::_base_/models/retinanet_r50_fpn.py'), 'train')


def test_work_dir_that_cannot_be_written(data, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='work dir .*file/run cannot be written'):
        checked(data, tmp_path, f'work_dir={tmp_path}/file/run')


# ---- print_config

def test_print_config(capsys, tmp_path):
    tool('misc/print_config.py').main([RETINANET, '--method', 'e3va'])
    (tmp_path / 'printed.py').write_text(capsys.readouterr().out)
    assert load_config(tmp_path / 'printed.py')._cfg_dict == prepare(parse(RETINANET, '--method', 'e3va'))._cfg_dict


# ---- configs of the newer style, whose types are classes

NEW_STYLE = dict(
    base='''
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from torch.optim import AdamW

from mmpretrain.datasets import CIFAR10, LoadImageFromFile, PackInputs
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor

optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-3, weight_decay=0.05),
                     constructor=LearningRateDecayOptimWrapperConstructor, paramwise_cfg=dict(layer_decay_rate=0.5))
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(
    type=CIFAR10, data_root='gone', split='train', pipeline=[dict(type=LoadImageFromFile), dict(type=PackInputs)]))
''',
    task='''
from mmengine.config import read_base
from mmengine.model import PretrainedInit
from mmpretrain.models import CrossEntropyLoss, ImageClassifier, LinearClsHead, VisionTransformer

with read_base():
    from .base import *

model = dict(
    type=ImageClassifier,
    head=dict(type=LinearClsHead, num_classes=5, in_channels=24, loss=dict(type=CrossEntropyLoss)),
    backbone=dict(type=VisionTransformer, img_size=64, patch_size=16, init_cfg=None,
                  arch=dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=48)))
''',
    amp='''
from mmengine.config import read_base
from mmengine.optim import AmpOptimWrapper

with read_base():
    from .task import *

optim_wrapper.update(dict(type=AmpOptimWrapper, loss_scale='dynamic'))
''',
    tuned='''
from mmengine.config import read_base
from mmpretrain.models import VisionTransformer

from e3va.methods import LoRA
from e3va.tuned import Tuned

with read_base():
    from .task import *

model.update(dict(backbone=dict(type=Tuned, trunk=VisionTransformer, method=dict(type=LoRA, rank=2))))
''',
    method='''
from e3va.gps.hook import GPSHook
from e3va.methods import GPS
from e3va.gps.optim import GPSOptimWrapper

method = dict(type=GPS, k=2)
default_hooks = dict(gps=dict(type=GPSHook))
optim_wrapper = dict(type=GPSOptimWrapper)
''')


@pytest.fixture
def new_style(tmp_path):
    for name, text in NEW_STYLE.items():
        (tmp_path / f'{name}.py').write_text(text)
    return tmp_path


def built(cfg):
    """The config's model and optimizer wrapper."""
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        return model, build_optim_wrapper(model, cfg.optim_wrapper)


@pytest.mark.parametrize('dumped', [False, True])
@pytest.mark.parametrize('task,method', [('task', 'lora'), ('task', 'method'), ('amp', 'gps'), ('amp', 'method'),
                                         ('tuned', None)])
def test_types_that_are_classes(new_style, task, method, dumped):
    """The same run as from names, of the config as it is and as mmengine writes it to a file (dotted paths)."""
    files = {name: new_style / f'{name}.py' for name in NEW_STYLE}
    if dumped:
        for name in NEW_STYLE:
            Config.fromfile(files[name]).dump(files[name].with_suffix('.json'))
            files[name] = files[name].with_suffix('.json')
    words = ['--method', str(files.get(method, method))] if method else []
    cfg = prepare(parse(str(files[task]), *words))
    backbone = cfg.model.backbone
    assert (backbone.type, backbone.trunk) == ('e3va.Tuned', 'mmpretrain.VisionTransformer')
    assert cfg.default_scope == 'mmpretrain' and cfg.train_dataloader.collate_fn == dict(type='default_collate')
    model, wrapper = built(cfg)
    gps = task != 'tuned' and method != 'lora'
    assert type(model.backbone.tuning.method).__name__ == ('GPS' if gps else 'LoRA')
    assert model.backbone.tuning.config['type'] == 'mmpretrain.VisionTransformer'
    assert type(wrapper).__name__ == ('GPSOptimWrapper' if gps else 'OptimWrapper')
    assert cfg.optim_wrapper.paramwise_cfg.constructor == 'mmpretrain.LearningRateDecayOptimWrapperConstructor'
    assert len({group['lr'] for group in wrapper.optimizer.param_groups}) == (6 if gps else 1)
    checks.check_dataset('train_dataloader.dataset', cfg.train_dataloader.dataset, cfg.default_scope)
    assert 'e3va.Tuned' in cfg.pretty_text
    with pytest.raises(ValueError, match='a method given twice'):
        apply_method(cfg, load_method('lora'))


@pytest.mark.parametrize('dumped', [False, True])
@pytest.mark.parametrize('task,method,twin', [
    ('task', None, 'AmpOptimWrapper'), ('amp', None, 'AmpOptimWrapper'), ('task', 'method', 'e3va.AmpGPSOptimWrapper'),
    ('amp', 'method', 'e3va.AmpGPSOptimWrapper')])
def test_amp_of_classes(new_style, task, method, twin, dumped):
    from mmengine.registry import OPTIM_WRAPPERS

    from e3va.registry import type_name
    files = {name: new_style / f'{name}.py' for name in NEW_STYLE}
    if dumped:
        for name in NEW_STYLE:
            Config.fromfile(files[name]).dump(files[name].with_suffix('.json'))
            files[name] = files[name].with_suffix('.json')
    cfg = use_amp(parse(str(files[task]), *(['--method', str(files[method])] if method else [])))
    assert type_name(cfg.optim_wrapper.type, OPTIM_WRAPPERS) == twin and cfg.optim_wrapper.loss_scale == 'dynamic'


def test_cost_of_a_config_of_classes(new_style):
    from e3va.cost.spec import make, stock, tuned
    cfg = load_config(new_style / 'tuned.py')
    assert tuned(stock(cfg), make('fixed', [])).model.backbone.trunk == 'mmpretrain.VisionTransformer'


def test_a_variable_of_the_file_changes_nothing(tmp_path, capsys):
    (tmp_path / 'mine.py').write_text(f"_base_ = '{RETINANET}'\nepochs = 3\n")
    parse(str(tmp_path / 'mine.py'), '--cfg-options', 'epochs=9')
    assert '--cfg-options epochs changes nothing: it is a variable of the file' in ''.join(capsys.readouterr())


NAMES = ('{{$HOME:a}}', "{{$NO_SUCH:x', open('made', 'w'), '}}", '{{{fileDirname}}}', 'a{{ b', '{{$X:(}}',
         "it's \\{{q}}")


@pytest.mark.parametrize('name', NAMES)
def test_a_config_is_written_so_that_it_reads_the_same(name, tmp_path, monkeypatch):
    """What somebody calls a class stays a text, whatever mmengine takes double braces for."""
    monkeypatch.chdir(tmp_path)
    Config(dict(classes=(name, 'b'), model=dict(type='A', name=name))).dump('config.py')
    again = Config.fromfile('config.py')
    assert again.classes == (name, 'b') and again.model.name == name and not Path('made').exists()
