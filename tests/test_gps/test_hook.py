"""GPSHook in mmengine's own runner: what it reads, what it selects, and that a resumed run goes on with it."""
from unittest import mock

import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner

import e3va
from e3va.command.processes import GlooRunner
from e3va.gps.contrast import supcon
from e3va.gps.hook import loader_of
from e3va.gps.method import selected, sparse_layers
from tests import running
from tests.conftest import VIT_ARCH, build, image, in_two_processes
from tests.running import Interrupt

CLASSES = 2
READ = []                       # (number, input) of each image that was loaded; a runner copies its data set


class Data(BaseDataset):
    """Eight images of two classes, by the number; each load of one adds noise."""

    def __init__(self, classes=CLASSES, bad=None):
        self.classes, self.bad = classes, bad
        super().__init__()

    def load_data_list(self):
        return [dict(number=i) for i in range(8)]

    def prepare_data(self, idx):
        from mmpretrain.structures import DataSample
        inputs = image('vit_mmpretrain', batch=1, seed=idx)[0] + 0.1 * torch.randn(1)
        READ.append((idx, inputs))
        sample = DataSample(metainfo=dict(img_path=f'{idx}.png')).set_gt_label(idx % self.classes)
        return dict(inputs=inputs * float('nan') if idx == self.bad else inputs, data_samples=sample)


class Noted:
    """A transform: loads an image and notes that it was here."""

    def __call__(self, results):
        return dict(Data().prepare_data(results['number']), noted=True)


@pytest.fixture(autouse=True)
def scope():
    import mmpretrain.models  # noqa: F401
    init_default_scope('mmpretrain')
    yield
    DefaultScope._instance_dict.clear()


def classifier(method, trunk='trunk.pth', drop=0.3):
    torch.manual_seed(3)
    return MODELS.build(dict(
        type='mmpretrain.ImageClassifier', data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor'),
        backbone=dict(type='e3va.Tuned', trunk='mmpretrain.VisionTransformer', method=method, arch=VIT_ARCH,
                      img_size=64, patch_size=16, drop_path_rate=drop,
                      init_cfg=dict(type='Pretrained', checkpoint=str(trunk))),
        head=dict(type='mmpretrain.VisionTransformerClsHead', num_classes=CLASSES, in_channels=24,
                  loss=dict(type='mmpretrain.CrossEntropyLoss'))))


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that makes a runner of 2 epochs of 4 batches; keywords are those of the hook."""
    torch.save(build('vit_mmpretrain', seed=4).state_dict(), tmp_path / 'trunk.pth')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Runner, '_log_env', lambda *_: None)
    names = iter(range(100))
    READ.clear()

    def make(method=None, data=None, loop=None, hooks=(), wrapper='e3va.GPSOptimWrapper', decay=0., resume=False,
             drop=0.3, seed=0, **options):
        loop = loop or dict(by_epoch=True, max_epochs=2)
        return Runner(
            model=classifier({'type': 'GPS', **(method or {})}, drop=drop), work_dir='run', train_cfg=loop,
            train_dataloader=dict(
                batch_size=2, num_workers=0, dataset=data or Data(), collate_fn=dict(type='default_collate'),
                sampler=dict(type='DefaultSampler' if loop['by_epoch'] else 'InfiniteSampler', shuffle=True)),
            optim_wrapper=dict(type=wrapper, optimizer=dict(type='AdamW', lr=1e-2, weight_decay=decay),
                               constructor='e3va.TunedOptimWrapperConstructor'),
            default_hooks=dict(
                rng_state=dict(type='e3va.RngStateHook'), gps=dict(type='e3va.GPSHook', **options),
                checkpoint=dict(type='CheckpointHook', interval=1 if loop['by_epoch'] else 4,
                                by_epoch=loop['by_epoch'])),
            custom_hooks=list(hooks), randomness=dict(seed=seed), resume=resume, default_scope='mmpretrain',
            experiment_name=f'{tmp_path}{next(names)}')
    return make


def indices(model):
    return [layer.index.clone() for layer in sparse_layers(model).values()]


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize('loop', [dict(by_epoch=True, max_epochs=1), dict(by_epoch=False, max_iters=4)])
def test_one_pass_over_the_training_data(make, loop):
    """Each image twice (two views), and then the batches that a run without a pass gets."""
    runner = make(loop=loop)
    runner.train()
    gradient = numbers()
    make(dict(criterion='random'), loop=loop).train()
    passed, random = gradient[1:17], numbers()                          # the first tells what kind of data these are
    assert sorted(passed) == sorted(list(range(8)) * 2) and passed[::2] == passed[1::2]
    assert gradient[17:] == random and len(random) == 8
    assert selected(runner.model) and runner.model.backbone.tuning.hooked


def test_a_last_batch_that_is_not_full_is_left_out(make):
    """As in the public code: a batch norm of the head cannot take one image."""
    with pytest.raises(KeyboardInterrupt):
        make(batch_size=3, views=1, hooks=[Interrupt(0)]).train()
    assert len(numbers()) == 1 + 6 + 2                                  # to look, to select, the first batch
    with pytest.raises(KeyboardInterrupt):
        make(batch_size=12, views=1, hooks=[Interrupt(0)]).train()
    assert len(numbers()) == 1 + 8 + 2                                  # of one batch all there is


def numbers():
    """Of the images that were loaded since the last call."""
    found = [number for number, _ in READ]
    READ.clear()
    return found


def test_what_it_selects_by_hand(make):
    """The largest |gradient| of each row, of the sum over all batches of their contrastive losses."""
    kept = []

    class Keep(Hook):
        priority = 'VERY_LOW'

        def before_train(self, runner):
            kept.extend(indices(runner.model))
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        make(hooks=[Keep()], batch_size=4, views=1, drop=0.).train()
    again = classifier(dict(type='GPS'), drop=0.)
    again.init_weights()
    layers = sparse_layers(again)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    given = READ[1:]                                                    # the first tells what kind of data these are
    assert len(given) == 8
    for batch in (given[:4], given[4:]):
        features = again.eval().backbone(torch.stack([inputs for _, inputs in batch]))[0]
        supcon(features, torch.tensor([number % CLASSES for number, _ in batch])).backward()
    want = []
    for layer in layers.values():
        rows = layer.weight.grad.abs().flatten(1)
        want.append((rows.argmax(1) + rows.shape[1] * torch.arange(len(rows)))[:, None].int())
    assert same(kept, want)


@pytest.mark.parametrize('method,buffers', [
    (dict(), False), (dict(level='net', k=2), False), (dict(level='net'), True),
    (dict(level='net', mode='mask'), False)])
def test_resume_is_exact_and_selects_once(make, method, buffers):
    """Interrupted in its second epoch, or not: the same weights and moments; the data are read for training only."""
    ema = dict(type='EMAHook', momentum=0.1, update_buffers=buffers)
    whole = make(method, hooks=[ema])
    whole.train()
    end = torch.load('run/epoch_2.pth', weights_only=False)
    with pytest.raises(KeyboardInterrupt):
        make(method, hooks=[ema, Interrupt(5)]).train()
    numbers()
    resumed = make(method, hooks=[ema], resume=True)
    resumed.train()
    assert sorted(numbers()) == list(range(8))
    assert same(indices(whole.model), indices(resumed.model))
    again = torch.load('run/epoch_2.pth', weights_only=False)
    for key in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(value, again[key][name]) for name, value in end[key].items())
    for number, state in end['optimizer']['state'].items():
        assert all(torch.equal(value, again['optimizer']['state'][number][name]) for name, value in state.items())
    assert not torch.equal(end['state_dict']['backbone.layers.0.attn.qkv.bias'],
                           end['ema_state_dict']['module.backbone.layers.0.attn.qkv.bias'])


def test_adam_and_checkpoint_follow_the_selection(make):
    runner = make()
    runner.train()
    held = sum(parameter.numel() for group in runner.optim_wrapper.optimizer.param_groups
               for parameter in group['params'] if parameter.requires_grad)
    report = e3va.report(runner.model)
    assert held == report['trained'] + report['head']
    moments = sum(value.numel() for state in runner.optim_wrapper.optimizer.state.values()
                  for name, value in state.items() if name != 'step')
    assert moments == 2 * held


def test_the_mask_run_is_the_sparse_run(make):
    """8 steps with the same selection and the same batches: the same weights."""
    ends = []
    for mode in ('sparse', 'mask'):
        runner = make(dict(mode=mode))
        runner.train()
        ends.append(e3va.merge(runner.model).state_dict())
    assert max(float((ends[1][name] - value).abs().max()) for name, value in ends[0].items()) <= 1e-6


@pytest.mark.parametrize('given,words', [
    (dict(method=dict(mode='mask'), wrapper='OptimWrapper'), 'e3va.GPSOptimWrapper.*not OptimWrapper'),
    (dict(method=dict(mode='mask'), decay=0.1), 'needs weight_decay=0, found 0.1'),
    (dict(method=dict(type='LoRA')), 'tuned by LoRA: drop the hook'),
    (dict(data=Data(classes=8), views=1), 'none of the 4 batches has two samples of one class'),
    (dict(data=Data(bad=3)), r'in batch \d \(.*3.png.*the loss, the gradient of .* is not finite')])
def test_refusals(make, given, words):
    with pytest.raises(ValueError, match=words):
        make(**given).train()


@pytest.mark.parametrize('options,words', [
    (dict(loss='ce'), "loss must be one of None, 'supcon', 'task'"), (dict(views=0), 'views must be an integer'),
    (dict(temperature=0), 'temperature must be'), (dict(batches=0), 'batches must be')])
def test_options(options, words):
    from e3va.gps.hook import GPSHook
    with pytest.raises(ValueError, match=words):
        GPSHook(**options)


@pytest.mark.parametrize('seed', [0, 7])
def test_a_head_of_zeros_has_random_weights_meanwhile(make, seed):
    """The selection is that of a head drawn with the run's seed, by hand; the training starts at the zeros."""
    runner = make(loss='task', batch_size=8, drop=0., hooks=[Interrupt(0)], seed=seed)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    head = runner.model.head.layers.head
    assert not head.weight.any() and not head.bias.any()
    given = READ[1:9]                                                   # the first tells what kind of data these are
    again = classifier(dict(type='GPS'), drop=0.)
    again.init_weights()
    drawn = torch.nn.init.trunc_normal_(torch.empty(CLASSES, 24), std=0.02,
                                        generator=torch.Generator().manual_seed(seed))
    layers = sparse_layers(again)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    features = again.eval().backbone(torch.stack([inputs for _, inputs in given]))[0]
    torch.nn.functional.cross_entropy(features @ drawn.T, torch.tensor([n % CLASSES for n, _ in given])).backward()
    for mine, layer in zip(indices(runner.model), layers.values(), strict=True):
        rows = layer.weight.grad.abs().flatten(1)
        want = (rows.argmax(1) + rows.shape[1] * torch.arange(len(rows)))[:, None]
        assert torch.equal(mine, want.int())
        assert not torch.equal(want[:, 0] % rows.shape[1], torch.full((len(rows),), rows.shape[1] - 1))     # of zeros


def test_task_loss_bounded_batches_and_own_pipeline(make):
    """loss='task' through the head, on one batch of three images, by other transforms; the head stays as it is."""
    runner = make(loss='task', batches=1, batch_size=3, pipeline=[Noted()], hooks=[Interrupt(0)])
    before = {name: value.clone() for name, value in runner.model.head.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert len(numbers()) == 1 + 3 + 2 and selected(runner.model)       # to look, to select, the first batch
    assert all(parameter.requires_grad and parameter.grad is None for parameter in runner.model.head.parameters())
    assert set(before) == set(runner.model.head.state_dict())


def test_a_selection_that_was_loaded_is_kept(make):
    """A run that begins from a tuned checkpoint goes on with its entries."""
    one = make()
    one.train()
    numbers()
    runner = make(hooks=[Interrupt(0)])
    runner._load_from = 'run/epoch_2.pth'
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert len(numbers()) == 2 and same(indices(one.model), indices(runner.model))


class Pairs(BaseDataset):
    """Items are tuples (image, label), as torch's data sets give them."""

    def load_data_list(self):
        return [dict(number=i) for i in range(8)]

    def prepare_data(self, idx):
        return image('vit_mmpretrain', batch=1, seed=idx)[0], idx % 3


def run_on_pairs(folder, **hook):
    loader = dict(batch_size=4, num_workers=0, dataset=Pairs(serialize_data=False),
                  sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=dict(type='default_collate'))
    hooks = dict(gps=dict(type='e3va.GPSHook', **hook))
    runner = running.runner_of(folder, lambda: running.Classifier(dict(type='GPS')), hooks, Hook(), epochs=1)
    runner._train_dataloader = loader
    runner.train()
    return runner


def test_data_sets_of_tuples(tmp_path):
    assert selected(run_on_pairs(tmp_path / 'task').model)
    with pytest.raises(ValueError, match="cannot select by loss='supcon': an item of the training set has no 'data_s"):
        run_on_pairs(tmp_path / 'supcon', loss='supcon')


def parts_read(rank, folder):
    """What each process reads where the runners' seeds differ."""
    runner = running.runner_of(folder / 'two', lambda: running.Classifier(dict(type='GPS')), dict(gps=dict(
        type='e3va.GPSHook', loss='task')), Hook(), epochs=1, batch=2, kind=GlooRunner, launcher='pytorch')
    runner.set_randomness(seed=3, diff_rank_seed=True)
    assert runner.seed == 3 + rank
    read = []
    with mock.patch('e3va.gps.hook.loader_of', lambda *given: read.append(list(loader_of(*given).sampler)) or
                    loader_of(*given)):
        running.without_batch_norm(runner).train()
    torch.save(read[0], folder / f'{rank}.pth')


def test_each_image_once_where_seeds_differ(tmp_path):
    in_two_processes(parts_read, tmp_path)
    parts = [torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1)]
    assert sorted(sum(parts, [])) == list(range(8))
