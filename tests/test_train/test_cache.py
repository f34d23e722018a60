"""CacheHook in a runner: once over the data, the run of Fixed without a cache, its resume, and what it refuses."""
import random

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor

from e3va.command.processes import GlooRunner
from e3va.train.cache import refuse_draws
from tests import running
from tests.running import (
    BATCH,
    IMAGES,
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

CACHED = dict(type='Fixed', cache=True)
HOOKS = dict(cache=dict(type='e3va.CacheHook'))


class Count(Hook):
    """How many images reach the trunk while it trains."""

    priority = 'HIGHEST'

    def before_train(self, runner):
        self.seen = 0
        trunk = getattr(runner.model, 'module', runner.model).backbone
        trunk.patch_embed.register_forward_hook(
            lambda module, inputs, _: self.__dict__.update(seen=self.seen + trunk.training * len(inputs[0])))


def run(folder, watch, method=CACHED, hooks=HOOKS, **options):
    return finished(runner_of(folder, lambda: Classifier(method), hooks, watch, **options))


def test_is_the_run_without_a_cache(tmp_path):
    """Three epochs, eight images, each through the trunk once; head and norm as they are without."""
    plain, cached = Count(), Count()
    want = state_of(run(tmp_path / 'plain', plain, method=dict(type='Fixed'), hooks={}))
    got = state_of(run(tmp_path / 'cached', cached))
    assert (plain.seen, cached.seen) == (3 * IMAGES, IMAGES)
    assert want.keys() == got.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


def test_resumes_bit_for_bit(tmp_path):
    whole = state_of(run(tmp_path / 'whole', Count()))
    assert run(tmp_path / 'part', Interrupt(3)) is None
    assert_equal(state_of(run(tmp_path / 'part', Count(), resume=True)), whole)


def probe(folder, file, **options):
    """A run of two epochs, whose weights go into a file."""
    watch = Weights(file)
    runner = without_batch_norm(runner_of(folder, lambda: Classifier(CACHED), HOOKS, watch, epochs=2, **options))
    runner.train()
    return runner


def two(rank, folder):
    runner = probe(folder / 'two', folder / f'{rank}.pth', kind=GlooRunner, launcher='pytorch', batch=BATCH // 2)
    assert len(runner.model.module.backbone.e3va_cache) == IMAGES


def test_two_processes(tmp_path):
    """Each computes half of the images and has the features of all: the weights of one process."""
    assert_as_one_process(probe, two, tmp_path, step=-1, rtol=1e-5, atol=1e-6)


# ---- what is refused

class Flip:
    def __call__(self, data):
        return dict(data, flip=random.random() < 0)


class Mix(BaseDataPreprocessor):
    def forward(self, data, training=False):
        torch.rand(1)
        return super().forward(data, training)


def test_a_pipeline_that_draws():
    """By the name of the transform, whatever it does with the number; through wrapped data sets."""
    class Data(running.Data):
        def __init__(self, pipeline):
            super().__init__(pipeline=pipeline)

    class Twice:
        def __init__(self, dataset):
            self.datasets = [dataset]

    refuse_draws(Data([dict]))
    for data in (Data([dict, Flip()]), Twice(Data([Flip()]))):
        with pytest.raises(ValueError, match='the transform Flip of the training pipeline draws at random'):
            refuse_draws(data)


def test_stops(tmp_path, monkeypatch):
    """A preprocessor that draws; images that change by a generator of their own; another method."""
    def mixing():
        model = Classifier(CACHED)
        model.data_preprocessor = Mix()
        return model

    with pytest.raises(ValueError, match='the Mix draws at random'):
        runner_of(tmp_path / 'mix', mixing, HOOKS, Count()).train()
    with pytest.raises(ValueError, match='CacheHook is for Fixed'):
        run(tmp_path / 'lora', Count(), method=dict(type='LoRA', rank=2))
    own = torch.Generator()
    monkeypatch.setattr(running.Data, 'prepare_data', lambda self, i: dict(
        inputs=torch.randn(3, 64, 64, generator=own), labels=i % 3))
    with pytest.raises(ValueError, match='in iteration 1 came an image that was not among the 8'):
        run(tmp_path / 'own', Count())
