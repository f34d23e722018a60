"""Pear inside mmengine's own runner: the pruning step, what trains on behind it, resume, averages, two processes."""
import copy
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook

import e3va
from e3va.command.processes import GlooRunner
from e3va.layers import Emptied
from e3va.methods.routing import routing_of
from tests import running
from tests.conftest import in_two_processes
from tests.running import BATCH, Classifier, Weights, assert_equal, finished, state_of, without_batch_norm

LORA = dict(type='LoRA', rank=2)                                        # four blocks, q and v: eight units
METHODS = dict(lora=LORA, adaptformer=dict(type='AdaptFormer', rank=2), adapter=dict(type='Adapter', rank=2),
               e3va=dict(type='E3VA', rank=1))


def trained(optimizer):
    """What an optimizer holds, but for the frozen parameters that mmengine gives it too."""
    return [one for group in optimizer.param_groups for one in group['params'] if one.requires_grad]


class Watch(Hook):
    """What each step had: units in the model, tensors in the optimizer, its moments; images given to the visualizer."""

    def __init__(self, stop=None):
        self.stop, self.rows, self.images = stop, [], []

    def before_train(self, runner):
        runner.visualizer.add_image = lambda name, image, step: self.images.append((name, image, step))
        runner.optim_wrapper.optimizer.register_step_pre_hook(self.look)

    def look(self, optimizer, *_):
        assert all(one.grad is not None for one in trained(optimizer))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.stop:
            raise KeyboardInterrupt

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = getattr(runner.model, 'module', runner.model)
        units = model.backbone.tuning.method.units(model.backbone).values()
        optimizer = runner.optim_wrapper.optimizer
        held = trained(optimizer)
        assert len(held) == len(set(held)) and set(optimizer.state) <= set(held)
        assert set(held) == {one for one in model.parameters() if one.requires_grad}
        self.rows.append(dict(own=sum(not isinstance(unit, Emptied) for unit in units), held=len(held),
                              moments=len(optimizer.state), ddp=runner.model,
                              summed=getattr(runner.optim_wrapper, 'steps', 0)))


def runner_of(folder, hook=None, method=LORA, stop=None, wrapper=None, **options):
    hooks = dict(pear=dict(type='e3va.PearHook', **dict(dict(warmup=1), **(hook or {}))))
    return running.runner_of(folder, partial(Classifier, method), hooks, Watch(stop),
                             wrapper=dict(dict(type='e3va.PearOptimWrapper'), **(wrapper or {})), **options)


def watched(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, Watch))


def train(*args, **options):
    """A finished run, or None for an interrupted one."""
    return finished(runner_of(*args, **options))


def log_of(folder):
    return next(folder.glob('*/*.log')).read_text()


@pytest.mark.parametrize('name', METHODS)
def test_a_run(tmp_path, name):
    """Half of the units are gone after the first epoch, from the model, the optimizer and the delta, and it trains on.
    """
    runner = train(tmp_path, method=METHODS[name])
    rows, trunk = watched(runner).rows, runner.model.backbone
    count = 4 if name == 'adaptformer' else 8
    assert [row['own'] for row in rows] == [count] * 2 + [count // 2] * 4
    factors = {'lora': 2, 'adaptformer': 4, 'adapter': 4, 'e3va': 6}[name]
    assert rows[0]['held'] - rows[-1]['held'] == factors * count // 2
    assert rows[-1]['moments'] == rows[-1]['held']
    table = routing_of(trunk).served_by
    assert sorted(table.unique().tolist()) == [i for i in range(count) if table[i] == i]
    assert table.bincount().max() == 2                                  # each survivor serves its own and one more
    (title, image, step), = watched(runner).images
    assert title == 'pear' and step == 2 and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    text = log_of(tmp_path)
    assert f'{count // 2} of {count} units are pruned before iteration 3' in text
    assert text.count('is pruned, served by ') == count // 2


def test_contributions_and_map_by_hand(tmp_path):
    """The mean of the epoch's gradients times the weights at its end, and rank to rank, computed a second time."""
    runner, seen = runner_of(tmp_path, hook=dict(warmup=2)), dict(found=[], weights=[])

    class Look(Hook):
        priority = 'LOWEST'

        def before_train(self, runner):
            self.pairs = list(runner.model.backbone.tuning.method.units(runner.model.backbone).values())
            runner.optim_wrapper.optimizer.register_step_pre_hook(self.before_step)

        def before_step(self, *_):
            seen['found'].append([[one.grad.clone() for one in pair.parameters()] for pair in self.pairs])

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen['weights'].append([[one.detach().clone() for one in pair.parameters()] for pair in self.pairs])
            if runner.iter == 3:                                        # the last of the warm-up
                raise KeyboardInterrupt

    runner.register_hook(Look())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    runner = train(tmp_path, hook=dict(warmup=2))
    first, second = seen['found'][2:]
    want = [sum(float((w * (a + b) / 2).abs().sum()) for w, a, b in zip(*each))
            for each in zip(seen['weights'][3], first, second)]
    table = routing_of(runner.model.backbone)
    assert table.scores.tolist() == pytest.approx(want, rel=1e-5)
    ranked = sorted(range(8), key=want.__getitem__)
    assert {i: int(k) for i, k in enumerate(table.served_by)} == {
        **{i: i for i in ranked[4:]}, **dict(zip(ranked[:4], ranked[4:]))}


def test_moments_are_kept(tmp_path):
    """A shared unit has the values and the moments that it had, and its next gradient is the sum over both positions.
    """
    runner, seen = runner_of(tmp_path, schedule=False), {}

    class Before(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 1:
                seen.update((one, (one.detach().clone(), copy.deepcopy(moments)))
                            for one, moments in runner.optim_wrapper.optimizer.state.items())

    class After(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 2:
                state = runner.optim_wrapper.optimizer.state
                assert 0 < len(state) < len(seen)
                for one, moments in state.items():
                    assert torch.equal(one, seen[one][0])
                    assert all(torch.equal(value, seen[one][1][name]) for name, value in moments.items())
                seen['checked'] = True

    runner.register_hook(Before()), runner.register_hook(After())
    runner.train()
    assert seen['checked']


@pytest.fixture(scope='module', params=['plain', 'ema', 'vanilla'])
def whole(request, tmp_path_factory):
    """A run that nothing interrupts: the options of it, its folder, itself."""
    options = dict(plain=dict(hook=dict(checkpoint='da')), vanilla=dict(hook=dict(share=False)),
                   ema=dict(ema=dict(update_buffers=True), hook=dict(checkpoint='sba', coefficients='scores')))
    folder = tmp_path_factory.mktemp('whole')
    return options[request.param], folder, train(folder, **options[request.param])


@pytest.mark.parametrize('epoch', [1, 2])
def test_resume_is_exact(whole, tmp_path, epoch):
    """In front of the pruning step (its gradients are in the checkpoint) and behind it: bit for bit."""
    options, folder, whole = whole
    resumed = train(tmp_path, resume=True, load_from=str(folder / f'epoch_{epoch}.pth'), **options)
    assert len(watched(resumed).rows) == 6 - 2 * epoch
    assert_equal(state_of(whole), state_of(resumed))


def test_averages_are_pruned_alike(whole):
    """EMAHook's copy has the same units, each of them averaged once a step."""
    options, _, runner = whole
    if 'ema' not in options:
        pytest.skip('only of the run with averages')
    averaged = next(hook for hook in runner.hooks if hasattr(hook, 'ema_model')).ema_model
    assert averaged.module.state_dict().keys() == runner.model.state_dict().keys()
    assert torch.equal(routing_of(averaged.module.backbone).served_by, routing_of(runner.model.backbone).served_by)
    assert set(averaged.avg_parameters) == set(averaged.module.state_dict())


def test_averages_by_hand(tmp_path):
    """The average of a shared unit goes on from its own (0.9 and 0.1), not from that of the pruned one."""
    runner, rows = runner_of(tmp_path, ema=True), []

    class Look(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            averaged = next(hook for hook in runner.hooks if hasattr(hook, 'ema_model')).ema_model.module
            rows.append([{name: one.detach().clone() for name, one in model.named_parameters()}
                         for model in (runner.model, averaged)])

    runner.register_hook(Look())
    runner.train()
    for (_, before), (now, after) in zip(rows, rows[1:]):
        assert now.keys() == after.keys()
        for name, value in after.items():
            torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * now[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('stop', [2, 4])
def test_resume_in_iterations(tmp_path, stop, monkeypatch):
    """The loop of segmenters; stopped within the steps whose gradients count, and behind the pruning step."""
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    options = dict(train_cfg=dict(by_epoch=False, max_iters=6, val_interval=2), hook=dict(warmup=3, by_epoch=False))
    whole = train(tmp_path / 'whole', **options)
    assert [row['own'] for row in watched(whole).rows] == [8, 8, 8, 4, 4, 4]
    assert train(tmp_path / 'broken', stop=stop, **options) is None
    assert_equal(state_of(whole), state_of(train(tmp_path / 'broken', resume=True, **options)))


def test_epochs_of_a_loop_that_counts_iterations(tmp_path, monkeypatch):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    runner = train(tmp_path, train_cfg=dict(by_epoch=False, max_iters=5, val_interval=100), hook=dict(warmup=2))
    assert [row['own'] for row in watched(runner).rows] == [8, 8, 8, 8, 4]


def test_iterations_of_a_loop_that_counts_epochs(tmp_path):
    runner = train(tmp_path, hook=dict(warmup=3, by_epoch=False))
    assert [row['own'] for row in watched(runner).rows] == [8, 8, 8, 4, 4, 4]


@pytest.mark.parametrize('loop', [{}, dict(train_cfg=dict(by_epoch=False, max_iters=6, val_interval=100))])
def test_a_share_of_the_run(tmp_path, monkeypatch, loop):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    runner = train(tmp_path, hook=dict(warmup=0.5), **loop)
    assert [row['own'] for row in watched(runner).rows] == [8, 8, 8, 4, 4, 4]
    assert 'pruned after 0.5 of the run, by taylor of iterations 2 to 3' in next(tmp_path.glob('*/*.log')).read_text()


def test_mixed_precision(tmp_path, monkeypatch):
    """The AMP twin divides by the scale of its loss: the contributions are the same under any."""
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    found = []
    for scale in (1., 1024.):
        runner = runner_of(tmp_path / str(scale), epochs=2,
                           wrapper=dict(type='e3va.AmpPearOptimWrapper', dtype='bfloat16', clip_grad=dict(max_norm=1.)))
        scaler = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.optim_wrapper = scaler
        scaler.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale)
        runner.train()
        assert [row['own'] for row in watched(runner).rows] == [8, 8, 4, 4]
        found.append(routing_of(runner.model.backbone).scores)
    torch.testing.assert_close(*found, rtol=1e-3, atol=0)


def test_vanilla_pruning(tmp_path):
    """By its own name too: the positions are left without a unit."""
    runner = train(tmp_path / 'a', hook=dict(share=False))
    assert (routing_of(runner.model.backbone).served_by == -1).sum() == 4
    assert log_of(tmp_path / 'a').count('served by none') == 4
    other = running.runner_of(tmp_path / 'b', partial(Classifier, LORA), dict(
        pear=dict(type='e3va.VanillaPruning', warmup=1)), Watch(), wrapper=dict(type='e3va.PearOptimWrapper'))
    other.train()
    assert_equal(state_of(runner), state_of(other))


@pytest.mark.parametrize('ratio', [0, 0.1])
def test_a_ratio_of_no_unit_says_so(tmp_path, ratio):
    pruned, stock = train(tmp_path / 'a', hook=dict(ratio=ratio)), running.runner_of(
        tmp_path / 'b', partial(Classifier, LORA), {}, Watch(), wrapper=dict(type='OptimWrapper'))
    stock.train()
    assert_equal(state_of(pruned), state_of(stock))
    assert f'ratio={ratio} prunes nothing: this is a training of plain LoRA' in log_of(tmp_path / 'a')
    assert 'Of 8 units the smallest ratio that prunes one is 0.125' in log_of(tmp_path / 'a')


@pytest.mark.parametrize('options,words', [
    (dict(hook=dict(warmup=3)), 'the warm-up of Pear, 3 epochs, is not shorter than the run, 6 iterations'),
    (dict(hook=dict(warmup=7, by_epoch=False)), 'the warm-up of Pear, 7 iterations, is not shorter'),
    (dict(method=dict(type='BitFit')), 'made of equal units, and BitFit .* is not'),
    (dict(method=dict(type='E3VA', rank=1, arrangement='stacked')), 'made of equal units, and E3VA .* is not'),
    (dict(wrapper=dict(type='OptimWrapper')), "optim_wrapper.type='e3va.PearOptimWrapper'"),
    (dict(wrapper=dict(accumulative_counts=4)), 'no unit has a gradient in the iterations 1 to 2'),
])
def test_wrong_input(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        train(tmp_path, **options)


@pytest.mark.parametrize('options,words', [
    (dict(ratio=1), 'ratio must be a number of at least 0 and below 1, not 1'), (dict(ratio=-0.1), 'ratio'),
    (dict(ratio=1.5), 'ratio'), (dict(ratio='half'), 'ratio'), (dict(warmup=0), 'warmup'),
    (dict(warmup=1.), 'a share of the run above 0 and below 1'),
    (dict(criterion='loss'), 'criterion'), (dict(checkpoint='last'), 'checkpoint'), (dict(scope='stage'), 'scope'),
    (dict(share_scope='layer'), 'share_scope'), (dict(coefficients=(1,)), 'C_1 and C_2'),
    (dict(coefficients='score'), 'C_1 and C_2'), (dict(coefficients=0.5), 'C_1 and C_2'),
    (dict(coefficients=None), 'C_1 and C_2'), (dict(coefficients=(0, 0)), 'coefficients are both 0'),
    (dict(coefficients=(1, 'b')), 'coefficients'), (dict(by_epoch='no'), 'by_epoch'), (dict(share='no'), 'share must'),
    (dict(checkpoint='da', share=False), 'drop one of them')])
def test_wrong_options(options, words):
    from e3va.pear.hook import PearHook
    with pytest.raises(ValueError, match=words):
        PearHook(**options)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoints')
    train(folder)
    return folder


@pytest.mark.parametrize('epoch', [1, 2])
@pytest.mark.parametrize('hook,words', [
    (dict(ratio=0.25), 'ratio=0.5 instead of 0.25'), (dict(checkpoint='da'), "checkpoint=None instead of 'da'")])
def test_resume_with_other_options_is_refused(checkpoints, tmp_path, epoch, hook, words):
    with pytest.raises(ValueError, match=f'of a run of Pear with {words}: resume with the same options'):
        train(tmp_path, resume=True, load_from=str(checkpoints / f'epoch_{epoch}.pth'), hook=hook)


@pytest.mark.parametrize('epoch', [1, 2])
@pytest.mark.parametrize('method,words', [
    (dict(LORA, alpha=8), 'alpha=2 instead of 8'), (dict(LORA, rank=3), 'rank=2 instead of 3'),
    (dict(LORA, bits=1), 'bits=32 instead of 1'), (dict(LORA, dropout=0.3), 'dropout=0.* instead of 0.3'),
    (dict(LORA, roles=('q', 'k')), r"roles=\('q', 'v'\) instead of \('q', 'k'\)"),
    (METHODS['adapter'], "method='LoRA' instead of 'Adapter'")])
def test_resume_with_another_method_is_refused(checkpoints, tmp_path, epoch, method, words):
    with pytest.raises(ValueError, match=f'of a run of Pear with .*{words}.*: resume with the same options'):
        train(tmp_path, resume=True, load_from=str(checkpoints / f'epoch_{epoch}.pth'), method=method)


def test_resume_of_an_older_version(checkpoints, tmp_path):
    """Its checkpoints have no record of the method."""
    state = torch.load(checkpoints / 'epoch_2.pth', weights_only=False)
    del state['e3va_pear']['method']
    torch.save(state, tmp_path / 'old.pth')
    runner = train(tmp_path, resume=True, load_from=str(tmp_path / 'old.pth'))
    last = torch.load(checkpoints / 'epoch_3.pth', weights_only=False)['state_dict']
    assert_equal(dict(runner.model.state_dict()), last)


def test_resume_of_another_run_is_refused(tmp_path):
    stock = running.runner_of(tmp_path / 'a', partial(Classifier, LORA), {}, Watch(), wrapper=dict(type='OptimWrapper'))
    stock.train()
    with pytest.raises(ValueError, match='not one of Pear'):
        train(tmp_path / 'b', resume=True, load_from=str(tmp_path / 'a/epoch_1.pth'))


def test_start_from_pruned_weights_is_refused(checkpoints, tmp_path):
    with pytest.raises(ValueError, match='a run that has pruned already'):
        train(tmp_path, load_from=str(checkpoints / 'epoch_2.pth'))


def plain_run(folder, model=partial(Classifier, LORA), **options):
    """A run of LoRA that knows nothing of Pear, with the hook that every run has."""
    return running.runner_of(folder, model, dict(report=dict(type='e3va.ReportHook')), Watch(),
                             wrapper=dict(type='OptimWrapper'), **options)


@pytest.mark.parametrize('ema', [False, True])
def test_pruned_weights_in_a_plain_run(checkpoints, tmp_path, ema):
    """It trains the units that are left (`Watch` looks at the optimizer), and resumes exactly."""
    options = dict(ema=ema, epochs=2)
    whole = plain_run(tmp_path / 'a', load_from=str(checkpoints / 'epoch_2.pth'), **options)
    whole.train()
    assert [row['own'] for row in watched(whole).rows] == [4] * 4
    resumed = plain_run(tmp_path / 'b', resume=True, load_from=str(tmp_path / 'a/epoch_1.pth'), **options)
    resumed.train()
    assert len(watched(resumed).rows) == 2
    assert_equal(state_of(whole), state_of(resumed))


def test_pruned_weights_by_init_cfg(checkpoints, tmp_path):
    weights = dict(type='Pretrained', checkpoint=str(checkpoints / 'epoch_2.pth'), prefix='backbone.')
    runner = plain_run(tmp_path, partial(Classifier, LORA, init_cfg=weights), ema=True, epochs=1)
    runner.train()
    assert [row['own'] for row in watched(runner).rows] == [4] * 2


@pytest.mark.parametrize('epoch', [1, 2])
def test_resume_without_the_hook_is_refused(checkpoints, tmp_path, epoch):
    runner = plain_run(tmp_path, resume=True, load_from=str(checkpoints / f'epoch_{epoch}.pth'))
    with pytest.raises(ValueError, match='of a run of Pear, and this one is without its hook'):
        runner.train()


def test_testing_takes_what_the_checkpoint_has(checkpoints):
    """A model of the config is pruned as the checkpoint was; merged it gives the same."""
    states = [torch.load(checkpoints / f'epoch_{i}.pth', weights_only=False)['state_dict'] for i in (1, 3)]
    assert [sum('.pairs.' in name for name in state) for state in states] == [16, 8]
    model = Classifier(LORA, seed=4)
    model.load_state_dict(states[1])
    report = model.backbone.tuning.loads[-1]
    assert not report.unexpected and not report.added_missing
    merged = e3va.merge(model.eval())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x, None), merged(x, None), rtol=1e-5, atol=1e-5)
    assert not any('pear' in name or 'pairs' in name for name in merged.state_dict())


# ---- two processes

TWO = dict(epochs=3, schedule=False, wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)))


def in_each(rank, folder):
    """Run in each process."""
    runner = without_batch_norm(runner_of(folder / 'two', kind=GlooRunner, launcher='pytorch', batch=BATCH // 2,
                                          **copy.deepcopy(TWO)))
    runner.register_hook(Weights(folder / f'two_{rank}.pth'))
    runner.train()
    torch.save([row['own'] for row in watched(runner).rows], folder / f'rows_{rank}.pth')


def test_two_processes(tmp_path):
    """Under DDP without find_unused_parameters: the weights and the map of one process."""
    in_two_processes(in_each, tmp_path)
    runner = without_batch_norm(runner_of(tmp_path / 'one', **copy.deepcopy(TWO)))
    runner.register_hook(Weights(tmp_path / 'one.pth'))
    runner.train()
    one, first, second = (torch.load(tmp_path / f'{name}.pth') for name in ('one', 'two_0', 'two_1'))
    assert torch.load(tmp_path / 'rows_0.pth') == [8, 8, 4, 4, 4, 4]
    for want, *both in zip(one, first, second, strict=True):
        assert want.keys() == both[0].keys() == both[1].keys()
        for name in want:
            assert torch.equal(both[0][name], both[1][name]), name
            torch.testing.assert_close(both[0][name], want[name], rtol=1e-4, atol=1e-6)


def start_in_each(rank, folder):
    runner = plain_run(folder / 'two', kind=GlooRunner, launcher='pytorch', batch=BATCH // 2, epochs=1,
                       load_from=str(folder / 'epoch_2.pth'))
    runner.train()
    torch.save([row['own'] for row in watched(runner).rows], folder / f'rows_{rank}.pth')


def test_pruned_weights_in_two_processes(checkpoints):
    """DDP, which was there before the weights, does not wait for what they have not."""
    in_two_processes(start_in_each, checkpoints)
    assert torch.load(checkpoints / 'rows_0.pth') == torch.load(checkpoints / 'rows_1.pth') == [4, 4]


def test_resume_as_a_longer_run(tmp_path):
    """The warm-up, a share of the run, is another one then: its gradients are summed anew, or the resume is refused."""
    options = dict(hook=dict(warmup=0.2), schedule=False)
    assert train(tmp_path / 'short', stop=4, epochs=10, **options) is None         # 20 iterations, of which 3 and 4
    for epoch in (1, 2):
        folder, start = tmp_path / str(epoch), str(tmp_path / f'short/epoch_{epoch}.pth')
        resumed = train(folder, resume=True, load_from=start, epochs=20, **options)
        assert resumed and 'by taylor of iterations 7 to 8' in log_of(folder)
        summed = [row['summed'] for row in watched(resumed).rows]
        assert max(summed) == 2 and summed.index(1) == 6 - 2 * epoch
    with pytest.raises(ValueError, match='is of iteration 4 of a run of Pear that sums gradients from iteration 3 on, '
                                         'and by this config these begin with iteration 1'):
        train(tmp_path / 'less', resume=True, load_from=str(tmp_path / 'short/epoch_2.pth'), epochs=5, **options)
