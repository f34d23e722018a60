"""DMLoRA inside mmengine's own runner: draws, halvings, the second stage, resume, two processes."""
import copy
import json
from functools import partial

import pytest
import timm
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import nn
from torch.nn import functional

import e3va
from e3va.command.processes import GlooRunner
from e3va.dmlora.method import mixtures
from e3va.registry import MODELS
from tests import running
from tests.conftest import build, in_two_processes
from tests.running import BATCH, Classifier, Weights, assert_equal, finished, state_of, without_batch_norm

BRANCHES = 4


def classifier(**method):
    return Classifier(dict(dict(type='DMLoRA', rank=2, branches=BRANCHES), **method))


class Watch(Hook):
    """What each step had: branches, stage, rates, what trains, what got a gradient and how large the optimizer is."""

    def __init__(self, stop=None):
        self.stop, self.rows = stop, []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.stop:
            raise KeyboardInterrupt
        model = getattr(runner.model, 'module', runner.model)
        optimizer = runner.optim_wrapper.optimizer
        self.rows.append(dict(
            iter=runner.iter, branches=max(map(len, mixtures(model))),
            drawn=[next(i for i, one in enumerate(each.all) if one is each.drawn) for each in mixtures(model)],
            trained=sorted(name for name, one in model.named_parameters() if one.requires_grad),
            rate=optimizer.param_groups[0]['lr'], optimizer=optimizer, ddp=runner.model,
            held=sum(one.requires_grad for group in optimizer.param_groups for one in group['params']),
            norm=model.norm.training))


def runner_of(folder, hook=None, method=None, stop=None, wrapper=None, model=None, **options):
    hooks = dict(dmlora=dict(type='e3va.DMLoRAHook', **dict(dict(every=1, scale_length=2), **(hook or {}))))
    return running.runner_of(folder, model or partial(classifier, **(method or {})), hooks, Watch(stop),
                             wrapper=dict(dict(type='e3va.DMLoRAOptimWrapper'), **(wrapper or {})), **options)


def watched(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, Watch)).rows


def train(*args, **options):
    """A finished run, or None for an interrupted one."""
    return finished(runner_of(*args, **options))


def test_a_run(tmp_path, capsys):
    """Three epochs with 4, 2 and 1 branches, then two that train the scales alone; the log and the files say so."""
    runner = train(tmp_path)
    rows = watched(runner)
    assert [row['branches'] for row in rows] == [4, 4, 2, 2, 1, 1, 1, 1, 1, 1]
    assert (runner.max_epochs, runner.max_iters) == (5, 10)
    factors = 4 * 2 * 2                                                 # blocks, q and v, A and B
    assert [row['held'] - 4 for row in rows[:6]] == [factors * row['branches'] for row in rows[:6]]    # 4: norm, head
    assert all(len(row['trained']) == row['held'] for row in rows)
    scales = [f'backbone.layers.{i}.attn.qkv.scale' for i in range(4)]
    assert all(row['trained'] == scales and row['held'] == 4 for row in rows[6:])
    assert [row['norm'] for row in rows] == 6 * [True] + 4 * [False]
    assert rows[5]['optimizer'] is not rows[6]['optimizer']
    torch.testing.assert_close([row['rate'] for row in rows[6:]], [0.01, 0.00853553, 0.005, 0.00146447])   # a cosine
    at = [torch.load(tmp_path / f'epoch_{i}.pth', weights_only=False)['state_dict'] for i in (1, 3, 5)]
    assert [sum('.qkv.down.0.' in name for name in state) for state in at] == [4 * 4, 4, 4]
    moved = {name for name in at[1] if not torch.equal(at[1][name], at[2][name])}
    assert moved == set(scales)                                         # also no statistics of the head's batch norm
    logged = [json.loads(line) for line in next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    losses = [row for row in logged if 'loss' in row]
    assert [(row['branches'], row['stage']) for row in losses] == [(4, 1)] * 2 + [(2, 1)] * 2 + [(1, 1)] * 2 + [
        (1, 2)] * 4
    learned = [row for row in logged if 'scale/backbone.layers.0.attn.qkv.q' in row]
    assert len(learned) == 4
    assert learned[-1]['scale/backbone.layers.0.attn.qkv.v'] == pytest.approx(float(at[2][scales[0]][1]))
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert '4 branches, halved every 1 epochs down to 1 (dropout)' in text
    assert 'second stage from iteration 7 to 10: the branches are frozen, 8 scales train at 0.01' in text
    assert 'stage: 2' in text and 'Epoch(train) [5][2/2]' in text.replace('   ', ' ').replace('  ', ' ')


def test_moments_of_kept_branches(tmp_path):
    """A kept branch has after the halving the values and the moments that it had; a dropped one has none."""
    runner = runner_of(tmp_path, hook=dict(scale_length=None), epochs=2)
    seen = {}

    class Look(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 2:                                        # before DMLoRAHook
                model, state = runner.model, runner.optim_wrapper.optimizer.state
                seen.update((one, (one.detach().clone(), copy.deepcopy(state.get(one))))
                            for each in mixtures(model) for one in each.all)

    look = Look()
    look.priority = 'HIGHEST'
    runner.register_hook(look, priority='HIGHEST')
    runner._hooks.insert(0, runner._hooks.pop(runner._hooks.index(look)))

    class After(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 2:
                state = runner.optim_wrapper.optimizer.state
                kept = {one for each in mixtures(runner.model) for one in each.all}
                assert len(kept) == len(seen) // 2 and kept < set(seen)
                for one, (value, moments) in seen.items():
                    assert torch.equal(one, value)
                    if one in kept and moments:
                        assert all(torch.equal(moments[name], state[one][name]) for name in moments)
                    else:
                        assert one not in state
                held = {one for group in runner.optim_wrapper.param_groups for one in group['params']}
                assert kept < held and not (set(seen) - kept) & held
                seen['checked'] = True

    runner.register_hook(After(), priority='LOWEST')
    runner.train()
    assert seen['checked']


@pytest.fixture(scope='module', params=[False, True], ids=['plain', 'ema'])
def whole(request, tmp_path_factory):
    """A run that nothing interrupts, without and with EMAHook."""
    folder = tmp_path_factory.mktemp('whole')
    return request.param, folder, train(folder, ema=request.param)


@pytest.mark.parametrize('epoch', [1, 2, 3, 4])
def test_resume_is_exact(whole, tmp_path, epoch):
    """In front of both halvings, at the change of stage and behind it: weights, moments and averages, bit for bit."""
    ema, folder, whole = whole
    resumed = train(tmp_path, resume=True, load_from=str(folder / f'epoch_{epoch}.pth'), ema=ema)
    assert watched(resumed)[0]['iter'] == 2 * epoch
    assert_equal(state_of(whole), state_of(resumed))
    for one, other in zip(watched(whole)[2 * epoch:], watched(resumed), strict=True):
        assert (one['drawn'], one['rate'], one['held']) == (other['drawn'], other['rate'], other['held'])
    assert [s.state_dict() for s in whole.param_schedulers] == [s.state_dict() for s in resumed.param_schedulers]
    records = [torch.load(place / 'epoch_5.pth', weights_only=False)['e3va_dmlora'] for place in (folder, tmp_path)]
    assert records[0] == records[1] and records[0]['position'] == 2     # of the last epoch of the first stage


@pytest.mark.parametrize('stop', [3, 6, 7])
def test_resume_in_iterations(tmp_path, stop, monkeypatch):
    """The loop of segmenters: halved every two iterations, the second stage after six."""
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    options = dict(train_cfg=dict(by_epoch=False, max_iters=6, val_interval=2),
                   hook=dict(every=2, scale_length=3, by_epoch=False))
    whole = train(tmp_path / 'whole', **options)
    assert [row['branches'] for row in watched(whole)] == [4, 4, 2, 2, 1, 1, 1, 1, 1]
    assert [len(row['trained']) for row in watched(whole)][5:] == [16 + 4, 4, 4, 4]
    assert train(tmp_path / 'broken', stop=stop, **options) is None
    resumed = train(tmp_path / 'broken', resume=True, **options)
    assert_equal(state_of(whole), state_of(resumed))


def test_epochs_of_a_loop_that_counts_iterations(tmp_path, monkeypatch):
    """by_epoch=True there means as many iterations as an epoch has, here two."""
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    runner = train(tmp_path, train_cfg=dict(by_epoch=False, max_iters=5, val_interval=100))
    assert [row['branches'] for row in watched(runner)] == [4, 4, 2, 2, 1, 1, 1, 1, 1]
    assert [len(row['trained']) == 4 for row in watched(runner)] == 5 * [False] + 4 * [True]


def test_iterations_of_a_loop_that_counts_epochs(tmp_path):
    """by_epoch=False there: halved inside an epoch; a second stage of two iterations is an epoch."""
    runner = train(tmp_path, hook=dict(every=3, scale_length=2, by_epoch=False))
    assert [row['branches'] for row in watched(runner)] == [4, 4, 4, 2, 2, 2, 1, 1]
    assert [len(row['trained']) == 4 for row in watched(runner)] == 6 * [False] + 2 * [True]
    assert runner.epoch == runner.max_epochs == 4


@pytest.mark.parametrize('stop', [4, 7])
def test_averaging(tmp_path, stop):
    """Scheme B: the mean of two branches, with the mean of their moments; resumes as well."""
    whole = train(tmp_path / 'whole', hook=dict(halving='average'))
    assert [row['branches'] for row in watched(whole)] == [4, 4, 2, 2, 1, 1, 1, 1, 1, 1]
    train(tmp_path / 'broken', hook=dict(halving='average'), stop=stop)
    assert_equal(state_of(whole), state_of(train(tmp_path / 'broken', hook=dict(halving='average'), resume=True)))


def test_none_and_shared(tmp_path):
    """Schemes A and C: no halving; a single up factor. The second stage makes the branches one in both."""
    rows = watched(train(tmp_path / 'a', hook=dict(halving='none')))
    assert [row['branches'] for row in rows] == 6 * [4] + 4 * [1]
    rows = watched(train(tmp_path / 'c', method=dict(share='up')))
    assert [row['branches'] for row in rows] == [4, 4, 2, 2, 1, 1, 1, 1, 1, 1]
    assert [row['held'] - 4 for row in rows[:6]] == [8 * (row['branches'] + 1) for row in rows[:6]]


def test_one_stage(tmp_path):
    """The scales train with the branches, and are logged."""
    runner = train(tmp_path, hook=dict(scale_length=None), method=dict(learn_scale=True))
    assert runner.max_epochs == 3
    assert all(sum(name.endswith('.scale') for name in row['trained']) == 4 for row in watched(runner))
    assert all(float((layer.scale - 1).abs().min()) > 0
               for layer in runner.model.modules() if hasattr(layer, 'down') and hasattr(layer, 'scale'))
    text = next(tmp_path.glob('*/vis_data/scalars.json')).read_text()
    assert text.count('"scale/backbone.layers.3.attn.qkv.v"') == 6


def test_head_trains_on(tmp_path):
    """train_head: neck and head keep their own rate of the start, the scales have theirs."""
    runner = train(tmp_path, hook=dict(train_head=True, scale_lr=0.05, scale_schedule='constant'))
    last = watched(runner)[-1]
    assert sum(not name.startswith('backbone.') for name in last['trained']) == 4 and len(last['trained']) == 8
    assert last['norm']
    groups = last['optimizer'].param_groups
    assert [(group['lr'], group['weight_decay'], len(group['params'])) for group in groups] == [
        (0.05, 0.0, 4), (0.01, 0.1, 4)]


class Timm(BaseModel):
    """A tuned classifier of timm, whose head is inside the trunk."""

    def __init__(self):
        super().__init__(BaseDataPreprocessor())
        net = timm.create_model('vit_tiny_patch16_224', img_size=64, depth=2, embed_dim=24, num_heads=2, num_classes=3)
        self.norm, self.net = nn.BatchNorm1d(3), e3va.tune(net, dict(type='DMLoRA', rank=2, branches=BRANCHES))

    def forward(self, inputs, labels, mode='tensor'):
        out = self.norm(self.net(inputs))
        return dict(loss=functional.cross_entropy(out, labels)) if mode == 'loss' else list(out)


@pytest.mark.parametrize('train_head', [True, False])
def test_head_inside_the_trunk(tmp_path, train_head):
    runner = train(tmp_path, hook=dict(train_head=train_head), model=Timm)
    assert watched(runner)[-1]['trained'] == sorted(
        (['net.head.bias', 'net.head.weight', 'norm.bias', 'norm.weight'] if train_head else [])
        + [f'net.blocks.{i}.attn.qkv.scale' for i in range(2)])


def test_norms_that_wrapping_makes_anew(tmp_path, monkeypatch):
    """`sync_bn` replaces them whenever DDP wraps a model: in the second stage the new ones stand still."""
    monkeypatch.setattr('e3va.dmlora.hook.rewrap', lambda runner, *_: setattr(
        runner.model, 'norm', copy.deepcopy(runner.model.norm)))
    runner = train(tmp_path)
    assert [row['norm'] for row in watched(runner)] == 6 * [True] + 4 * [False]


def test_a_stop_in_the_first_stage_is_said(tmp_path):
    runner = runner_of(tmp_path)

    class Stop(Hook):
        def after_train_epoch(self, runner):
            runner.train_loop.stop_training = True                      # as EarlyStoppingHook

    runner.register_hook(Stop())
    runner.train()
    assert 'stopped after iteration 2, in its first stage, so' in next(tmp_path.glob('*/*.log')).read_text()


def test_accumulated_gradients_are_stepped_at_the_boundary(tmp_path):
    """Six iterations in fours: the last two are a step of their own; the second stage counts anew."""
    runner = runner_of(tmp_path, wrapper=dict(accumulative_counts=4))
    steps, step = [], type(runner.model).train_step

    def counting(model, data, optim_wrapper):
        before = copy.deepcopy({name: one for name, one in model.named_parameters() if one.requires_grad})
        out = step(model, data, optim_wrapper)
        steps.append(any(not torch.equal(one, before[name]) for name, one in model.named_parameters()
                         if one.requires_grad))
        return out

    runner.model.train_step = counting.__get__(runner.model)
    runner.train()
    assert steps == [False, False, False, True, False, True, False, False, False, True]


def test_mixed_precision(tmp_path, monkeypatch):
    """The AMP twin takes the same way; without a GPU its scaler does nothing, and autocast is the CPU's."""
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    runner = train(tmp_path, wrapper=dict(type='e3va.AmpDMLoRAOptimWrapper', dtype='bfloat16'))
    rows = watched(runner)
    assert [row['branches'] for row in rows] == [4, 4, 2, 2, 1, 1, 1, 1, 1, 1]
    assert [row['held'] for row in rows] == [4 + 16 * n for n in (4, 4, 2, 2, 1, 1)] + 4 * [4]
    assert all(one.dtype is torch.float32 and one.isfinite().all() for one in runner.model.parameters())


WRONG = [
    (dict(hook=dict(down_to=3)), '4 branches cannot be halved to down_to=3'),
    (dict(hook=dict(down_to=8)), '4 branches cannot be halved to down_to=8'),
    (dict(method=dict(branches=6)), '6 branches cannot be halved to down_to=1'),
    (dict(method=dict(learn_scale=True)), 'learned twice'),
    (dict(wrapper=dict(type='OptimWrapper')), "optim_wrapper.type='e3va.DMLoRAOptimWrapper'"),
    (dict(hook=dict(by_epoch=False, every=2, scale_length=3)), 'no whole epochs of 2'),
]


@pytest.mark.parametrize('options,words', WRONG)
def test_wrong_input(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        train(tmp_path, **options)


@pytest.mark.parametrize('options,words', [
    (dict(scale_length=0), 'scale_length is 0'), (dict(scale_length=-1), 'scale_length'), (dict(every=0), 'every'),
    (dict(every=1.5), 'every must be an integer of at least 1, or a share of the run'),
    (dict(down_to=0), 'down_to'), (dict(halving='half'), 'halving'), (dict(scale_lr='fast'), 'scale_lr'),
    (dict(scale_lr=0), 'scale_lr'), (dict(scale_schedule='step'), 'scale_schedule'),
    (dict(by_epoch='no'), "by_epoch must be one of True, False, not 'no'"), (dict(train_head='no'), 'train_head')])
def test_wrong_options(options, words):
    from e3va.dmlora.hook import DMLoRAHook
    with pytest.raises(ValueError, match=words):
        DMLoRAHook(**options)


def test_another_method(tmp_path):
    with pytest.raises(ValueError, match='the model has LoRA; drop the hook'):
        runner = runner_of(tmp_path)
        runner.model.backbone = build('vit_mmpretrain', 'lora')
        runner.train()


def test_shares_of_the_run(tmp_path, monkeypatch):
    """Of six iterations, 0.4 are two, wherever epochs end; of a loop of epochs the second stage is whole ones."""
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    runner = train(tmp_path / 'epochs', hook=dict(every=0.4, scale_length=0.3))
    assert [row['branches'] for row in watched(runner)] == [4, 4, 2, 2, 1, 1, 1, 1]
    assert (runner.max_epochs, runner.max_iters) == (4, 8)
    assert 'halved every 0.4 of the run down to 1' in next((tmp_path / 'epochs').glob('*/*.log')).read_text()
    runner = train(tmp_path / 'iterations', train_cfg=dict(by_epoch=False, max_iters=6, val_interval=100),
                   hook=dict(every=0.1, scale_length=0.5))
    assert [row['branches'] for row in watched(runner)] == [4, 2, 1, 1, 1, 1, 1, 1, 1]


def test_training_without_the_hook_is_refused():
    with pytest.raises(ValueError, match="dict\\(dmlora=dict\\(type='e3va.DMLoRAHook'\\)\\)"):
        classifier().train()(torch.zeros(2, 3, 64, 64), None)


def test_a_period_longer_than_the_run_is_said(tmp_path):
    runner = train(tmp_path, hook=dict(every=3, scale_length=None))
    assert watched(runner)[-1]['branches'] == 4
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert 'every=3 epochs is too long for this run to come down to 1: it ends with 4 of 4 branches' in text


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoints')
    train(folder)
    return folder


@pytest.mark.parametrize('epoch,options,words', [
    (1, dict(method=dict(branches=8)), 'a run with branches=4, and this config has branches=8'),
    (5, dict(method=dict(branches=8)), 'a run with branches=4, and this config has branches=8'),
    (2, dict(hook=dict(every=2, scale_length=2)), '2 branches left, and by this config there would be 4'),
    (4, dict(epochs=4), 'second stage that began after 3 epochs'),
    (5, dict(hook=dict(scale_length=None)), 'a run with scale_length=2, and this config has scale_length=None'),
    (4, dict(hook=dict(scale_length=4)), 'a run with scale_length=2, and this config has scale_length=4'),
    (4, dict(hook=dict(train_head=True)), 'a run with train_head=False, and this config has train_head=True'),
    (1, dict(hook=dict(halving='average')), "a run with halving='dropout', and this config has halving='average'"),
    (1, dict(method=dict(share='up')), "a run with share=None, and this config has share='up'"),
    (3, dict(epochs=2), 'iteration 6 of a first stage, and by this config the second stage begins after 4')])
def test_resume_of_another_run_is_refused(checkpoints, tmp_path, epoch, options, words):
    with pytest.raises(ValueError, match=words):
        train(tmp_path, resume=True, load_from=str(checkpoints / f'epoch_{epoch}.pth'), **options)


def test_start_from_a_run_that_has_dropped_branches_is_refused(checkpoints, tmp_path):
    with pytest.raises(ValueError, match='load_from has 2 branches in backbone.*a new run starts with 4'):
        train(tmp_path, load_from=str(checkpoints / 'epoch_2.pth'))


@pytest.mark.parametrize('found,asked', [(2, 4), (4, 2)])
def test_start_by_init_cfg_from_another_number_of_branches_is_refused(tmp_path, found, asked):
    torch.save(dict(state_dict=classifier(branches=found).backbone.state_dict()), tmp_path / 'run.pth')
    options = dict(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'run.pth')))
    with pytest.raises(ValueError, match=f'init_cfg has {found} branches in .*, and a new run starts with {asked}'):
        train(tmp_path, model=partial(Classifier, dict(type='DMLoRA', rank=2, branches=asked), **options))


@pytest.mark.parametrize('epoch', [1, 2, 5])
def test_testing_takes_what_the_checkpoint_has(checkpoints, tmp_path, epoch):
    """A model of the config takes a checkpoint with fewer branches; merged it gives the same."""
    model = classifier()
    model.load_state_dict(torch.load(checkpoints / f'epoch_{epoch}.pth', weights_only=False)['state_dict'])
    assert [len(each) for each in mixtures(model)] == [{1: 4, 2: 2, 5: 1}[epoch]] * 16
    report = model.backbone.tuning.loads[-1]
    assert not report.unexpected and not report.added_missing
    merged = e3va.merge(model.eval())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x, None), merged(x, None), rtol=1e-5, atol=1e-5)
    assert not any(name.endswith(('scale', '.down.0')) for name in merged.state_dict())


# ---- two processes

TWO = dict(epochs=3, wrapper=dict(accumulative_counts=1, optimizer=dict(type='SGD', lr=0.1, momentum=0.9),
                                  clip_grad=dict(max_norm=0.5)), schedule=False)


def options_of(accumulate):
    options = copy.deepcopy(TWO)
    options['wrapper']['accumulative_counts'] = accumulate
    return options


def accumulated(rank, folder):
    """Run in each process: one run for each number of accumulated batches."""
    for accumulate in (1, 2):
        runner = without_batch_norm(runner_of(folder / f'two_{accumulate}', kind=GlooRunner, launcher='pytorch',
                                              batch=BATCH // 2, **options_of(accumulate)))
        runner.register_hook(Weights(folder / f'two_{accumulate}_{rank}.pth'))
        runner.train()
        torch.save([(row['drawn'], row['branches'], id(row['ddp'])) for row in watched(runner)],
                   folder / f'rows_{accumulate}_{rank}.pth')


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    """The folder of two processes' runs."""
    return in_two_processes(accumulated, tmp_path_factory.mktemp('two'))


@pytest.mark.parametrize('accumulate', [1, 2])
def test_two_processes(two, tmp_path, accumulate):
    """Under DDP without find_unused_parameters, through halvings and the change of stage: one process's weights."""
    runner = without_batch_norm(runner_of(tmp_path / 'one', **options_of(accumulate)))
    runner.register_hook(Weights(tmp_path / 'one.pth'))
    runner.train()
    one = torch.load(tmp_path / 'one.pth')
    both = [torch.load(two / f'two_{accumulate}_{rank}.pth') for rank in (0, 1)]
    rows = [torch.load(two / f'rows_{accumulate}_{rank}.pth') for rank in (0, 1)]
    drawn = [(row['drawn'], row['branches']) for row in watched(runner)]
    assert all([row[:2] for row in each] == drawn for each in rows)
    assert len({row[2] for row in rows[0][:6]}) == 1 and rows[0][5][2] != rows[0][6][2]     # wrapped anew
    for want, first, second in zip(one, *both, strict=True):
        assert want.keys() == first.keys() == second.keys()
        for name in want:
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], want[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(one[0][name], one[-1][name]) for name in one[-1] if '.up.' in name)


class ResNet(BaseModel):
    """Convolutions, in a trunk of no known family."""

    def __init__(self, **method):
        super().__init__(BaseDataPreprocessor())
        import mmdet.models  # noqa: F401
        self.backbone = MODELS.build(dict(type='e3va.Tuned', trunk='mmdet.ResNet', depth=18, method=dict(
            type='DMLoRA', rank=2, branches=2, **method)))
        self.norm, self.head = nn.BatchNorm1d(512), nn.Linear(512, 3)

    def forward(self, inputs, labels, mode='tensor'):
        out = self.head(self.norm(self.backbone(inputs)[-1].mean((2, 3))))
        return dict(loss=functional.cross_entropy(out, labels)) if mode == 'loss' else list(out)


@pytest.mark.parametrize('method, hook, stages', [
    ({}, {}, [1] * 2 + [2] * 4), (dict(learn_scale=True), dict(scale_length=None), [1] * 2)])
def test_convolutions(tmp_path, method, hook, stages):
    """Both stages, and the scales of the layers in the log."""
    runner = train(tmp_path, hook=hook, model=partial(ResNet, **method), epochs=1)
    rows = [json.loads(line) for line in next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    assert [row['stage'] for row in rows if 'stage' in row] == stages
    assert runner.iter == len(stages)
    assert any(name.startswith('scale/backbone.layer1.0.conv1') for row in rows for name in row)
