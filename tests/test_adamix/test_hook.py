"""AdaMixHook in a runner: the loss of two passes by hand, resume, two processes, what it refuses."""
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from torch.nn import functional as F

from e3va.adamix.hook import AdaMixHook, consistent
from e3va.command.processes import GlooRunner
from e3va.dmlora.method import AGAIN, draw
from tests.conftest import stir
from tests.running import (
    BATCH,
    Classifier,
    Interrupt,
    Weights,
    assert_as_one_process,
    assert_equal,
    finished,
    runner_of,
    state_of,
    without_batch_norm,
)

METHOD = dict(type='AdaMix', rank=2, branches=3)
WRAPPER = dict(type='e3va.DMLoRAOptimWrapper')


class Losses(Hook):
    """The losses of each step, and what they are by hand: before the step, from the same weights and draws."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.found, self.want = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = runner.model
        logits = []
        for stream in (AGAIN, 0):                                       # the hook's draw is the last again
            draw(model, runner.iter, runner.seed, stream)
            state = {name: value.clone() for name, value in model.state_dict().items()}
            features = model.backbone(data_batch['inputs'])[-1]
            logits.append(model.head(model.norm(features)).detach())
            model.load_state_dict(state)
        p, q = (each.log_softmax(1) for each in logits)
        kl = (F.kl_div(q, p, log_target=True, reduction='batchmean') + F.kl_div(
            p, q, log_target=True, reduction='batchmean')) / 2
        self.want.append([float(F.cross_entropy(logits[1], data_batch['labels'])), float(2 * kl)])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.found.append([float(outputs['loss'].detach()), float(outputs['loss_consistency'])])


def runner_with(folder, watch, method=METHOD, wrapper=WRAPPER, consistency=2., **options):
    hooks = dict(adamix=dict(type='e3va.AdaMixHook', consistency=consistency))
    return runner_of(folder, lambda: Classifier(method, drop_path_rate=0.), hooks, watch, wrapper=wrapper, **options)


def test_the_loss_of_two_passes(tmp_path):
    watch = Losses()
    runner = runner_with(tmp_path, watch, epochs=2)
    runner.train()
    torch.testing.assert_close(torch.tensor(watch.found), torch.tensor(watch.want), rtol=1e-4, atol=1e-5)
    assert watch.found[-1][1] > 0 and 'forward' not in vars(runner.model)


def test_gradients():
    """Both passes' projections learn: those of the first from both terms, those of the second from the divergence."""
    model = without_batch_norm(SimpleNamespace(model=Classifier(METHOD, drop_path_rate=0.))).model.train()
    stir(model)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    hook = AdaMixHook()
    hook.iteration, hook.seed = 7, 3
    draw(model, 7, 3)
    losses = consistent(5., hook, 'forward', model, inputs=images, labels=labels, mode='loss')
    sum(losses.values()).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    logits = []
    for stream in (0, AGAIN):
        draw(model, 7, 3, stream)
        logits.append(model.head(model.norm(model.backbone(images)[-1])))
    p, q = (each.softmax(1) for each in logits)
    (F.cross_entropy(logits[0], labels) + 5 * ((p - q) * (p / q).log()).sum(1).mean() / 2).backward()
    for name, parameter in model.named_parameters():
        assert (name in found) == (parameter.grad is not None)
        if name in found:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_resumes_bit_for_bit(tmp_path):
    whole = state_of(finished(runner_with(tmp_path / 'whole', Weights(tmp_path / 'whole.pth'), ema=True)))
    assert finished(runner_with(tmp_path / 'part', Interrupt(3), ema=True)) is None
    assert_equal(state_of(finished(runner_with(
        tmp_path / 'part', Weights(tmp_path / 'part.pth'), ema=True, resume=True))), whole)


def train(folder, file, **options):
    runner = without_batch_norm(runner_with(folder, Weights(file), epochs=2, **options))
    runner.train()


def two(rank, folder):
    train(folder / 'two', folder / f'{rank}.pth', kind=GlooRunner, launcher='pytorch', batch=BATCH // 2)


def test_two_processes(tmp_path):
    """The same draws in both, and the weights of one process: the losses are means over images."""
    assert_as_one_process(train, two, tmp_path, rtol=1e-4, atol=1e-5)


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='AdaMixHook is for the method AdaMix, and the model has LoRA'):
        runner_with(tmp_path / 'lora', Weights('x'), method=dict(type='LoRA', rank=2)).train()
    with pytest.raises(ValueError, match='needs an optimizer wrapper that knows of branches, not OptimWrapper'):
        runner_with(tmp_path / 'wrapper', Weights('x'), wrapper={}).train()
    monkeypatch.setattr('e3va.adamix.hook.HEADS', ('bbox_head',))
    with pytest.raises(ValueError, match='Classifier has no bbox_head: set default_hooks.adamix.consistency=0'):
        runner_with(tmp_path / 'head', Weights('x')).train()
    runner_with(tmp_path / 'none', Weights(tmp_path / 'none.pth'), consistency=0., epochs=1).train()
    assert (tmp_path / 'none.pth').exists()
