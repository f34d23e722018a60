"""An interrupted and resumed run ends with the uninterrupted run's weights, bit for bit (mmengine's own runner)."""
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import e3va  # noqa: F401  (before any runner: it helps the stack import)
from e3va.train.rng_state import random_state, set_random_state
from tests.running import Interrupt


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, inputs, mode='tensor'):
        out = self.body(inputs)
        return dict(loss=out.square().mean()) if mode == 'loss' else [out.mean().item()]


class Data(BaseDataset):
    """Five samples, disturbed by all three generators."""

    def load_data_list(self):
        return [dict(number=i) for i in range(5)]

    def prepare_data(self, idx):
        return dict(inputs=idx + torch.rand(6) + random.random() + np.random.rand())


class Metric(BaseMetric):
    """Validation that draws from all three generators; the last score is the best, so that best is saved inside it."""

    def process(self, data_batch, data_samples):
        self.results.append(torch.rand(()).item() + random.random() + np.random.rand())

    def compute_metrics(self, results):
        self.calls = getattr(self, 'calls', 0) + 1
        return dict(score=self.calls)


def run(folder, train_cfg, sampler, stop=None, seed=0, resume=False, hook=True):
    torch.manual_seed(0)  # the model is drawn before the runner seeds
    loader = dict(batch_size=2, num_workers=0, dataset=Data(), collate_fn=dict(type='default_collate'))
    runner = Runner(
        model=Model(), work_dir=str(folder), experiment_name=f'{folder.name}{resume}{hook}', resume=resume,
        train_dataloader=dict(loader, sampler=dict(type=sampler, shuffle=True)), train_cfg=train_cfg,
        val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)), val_cfg={},
        val_evaluator=[Metric()], optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3, momentum=0.9)),
        default_hooks=dict(
            **(dict(rng_state=dict(type='e3va.RngStateHook')) if hook else {}),
            checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=train_cfg['by_epoch'], save_best='score',
                            rule='greater')),
        custom_hooks=[dict(type='EMAHook', momentum=0.1)] + ([Interrupt(stop)] if stop is not None else []),
        randomness=dict(seed=seed), log_level='ERROR')
    try:
        runner.train()
    except KeyboardInterrupt:
        return None
    state = dict(runner.model.state_dict())
    for number, moments in runner.optim_wrapper.state_dict()['state'].items():
        state[f'momentum {number}'] = moments['momentum_buffer']
    ema = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model
    state.update({f'ema {name}': value for name, value in ema.state_dict().items()})
    return state


def equal(one, other):
    assert all(value.isfinite().all() for value in one.values())
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


LOOPS = [
    pytest.param(dict(by_epoch=True, max_epochs=4, val_interval=1), 'DefaultSampler', 7, id='epochs'),
    pytest.param(dict(by_epoch=False, max_iters=8, val_interval=2), 'InfiniteSampler', 5, id='iterations'),
    # the sampler ends after 3 batches: once before the interruption, once after it
    pytest.param(dict(by_epoch=False, max_iters=8, val_interval=2), 'DefaultSampler', 4, id='iterations_finite'),
    pytest.param(dict(by_epoch=False, max_iters=8, val_interval=2), 'DefaultSampler', 6, id='iterations_at_end'),
]


@pytest.mark.parametrize('train_cfg, sampler, stop', LOOPS)
@pytest.mark.parametrize('seed', [0, None], ids=['seed', 'resumed_seed'])
def test_resume_is_exact(tmp_path, monkeypatch, train_cfg, sampler, stop, seed):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    whole = run(tmp_path / 'whole', train_cfg, sampler)
    assert run(tmp_path / 'broken', train_cfg, sampler, stop) is None
    torch.rand(random.randrange(10))  # a new process starts from another state
    resumed = run(tmp_path / 'broken', train_cfg, sampler, seed=seed, resume=True)
    assert equal(whole, resumed)


@pytest.mark.parametrize('train_cfg, sampler, stop', LOOPS[:2])
def test_without_the_hook_it_is_not(tmp_path, train_cfg, sampler, stop):
    whole = run(tmp_path / 'whole', train_cfg, sampler, hook=False)
    run(tmp_path / 'broken', train_cfg, sampler, stop, hook=False)
    assert not equal(whole, run(tmp_path / 'broken', train_cfg, sampler, resume=True, hook=False))


@pytest.mark.parametrize('train_cfg, sampler, stop', LOOPS[:2])
def test_validation_draws_nothing_from_training(tmp_path, train_cfg, sampler, stop):
    rarely = dict(train_cfg, val_interval=100)
    assert equal(run(tmp_path / 'often', train_cfg, sampler), run(tmp_path / 'rarely', rarely, sampler))


def test_skipping_by_next(tmp_path, monkeypatch):
    """mmengine before 0.10.8 skips batches by drawing them."""
    from mmengine.runner.loops import _InfiniteDataloaderIterator

    def skip_by_next(self, count):
        for _ in range(count):
            next(self)

    train_cfg, sampler, stop = LOOPS[1].values
    whole = run(tmp_path / 'whole', train_cfg, sampler)
    run(tmp_path / 'broken', train_cfg, sampler, stop)
    monkeypatch.setattr(_InfiniteDataloaderIterator, 'skip_iter', skip_by_next)
    monkeypatch.setattr('e3va.train.rng_state.ResumedIterator.skip_iter', skip_by_next)
    assert equal(whole, run(tmp_path / 'broken', train_cfg, sampler, resume=True))


def test_state_round_trip():
    state = random_state()
    drawn = random.random(), np.random.randn(), torch.rand(3), random.gauss(0, 1), np.random.randn()
    set_random_state(state)
    again = random.random(), np.random.randn(), torch.rand(3), random.gauss(0, 1), np.random.randn()
    assert drawn[:2] == again[:2] and torch.equal(drawn[2], again[2]) and drawn[3:] == again[3:]


def test_state_survives_a_safe_load(tmp_path):
    torch.save(random_state(), tmp_path / 'state.pth')
    expected = torch.rand(3)
    set_random_state(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert torch.equal(torch.rand(3), expected)
