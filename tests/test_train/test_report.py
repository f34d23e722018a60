"""What a run says at its start about what trains and which weights arrived."""
import logging
import re
import types

import pytest
from mmengine.hooks import Hook

from e3va.train.report import ReportHook
from tests.conftest import build
from tests.running import Classifier, Data, Metric, runner_of


@pytest.fixture
def said(caplog):
    """(trunk) -> (infos, warnings) of the hook at the start of training."""
    def start(trunk, moment='before_train'):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            getattr(ReportHook(), moment)(types.SimpleNamespace(
                model=trunk, logger=logging.getLogger('run'), _resume=False, _load_from=None))
        records = [record for record in caplog.records if record.name == 'run']
        return tuple('\n'.join(r.getMessage() for r in records if r.levelno == level)
                     for level in (logging.INFO, logging.WARNING))
    return start


def test_table_and_loads(said):
    trunk = build('swin_mmdet', 'e3va')
    trunk.load_state_dict(build('swin_mmdet').state_dict(), strict=False)
    table, warnings = said(trunk)
    trained = sum(p.numel() for p in trunk.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in trunk.parameters() if not p.requires_grad)
    assert 'E3VA on SwinTransformer' in table
    assert f' {trained:,} ' in table and f' {frozen:,} ' in table
    assert f' {trained * 4 / 2 ** 20:.2f} ' in table and f' {frozen * 4 / 2 ** 20:.2f} ' in table
    stock = len(build('swin_mmdet').state_dict())
    added = len(trunk.state_dict()) - stock
    assert f'{stock} matched, 0 missing, 0 unexpected' in table
    assert f'added by the method: 0 matched, {added} missing' in table
    assert not warnings


@pytest.mark.parametrize('moment', ['before_train', 'before_test'])
@pytest.mark.parametrize('method', ['e3va', 'lora', 'fixed'])
def test_random_frozen_trunk_is_warned_of(said, method, moment):
    assert 'RANDOM TRUNK' in said(build('swin_mmdet', method), moment)[1]


def test_full_fine_tuning_from_scratch_is_not(said):
    assert not said(build('swin_mmdet', 'full'))[1]


def test_peak_memory_is_the_process_s(said):
    import psutil
    text = said(build('swin_mmdet', 'e3va'), 'after_train')[0]
    peak = float(re.search(r'peak memory: ([\d,]+) MiB', text)[1].replace(',', ''))
    assert peak >= 0.9 * psutil.Process().memory_info().rss / 2 ** 20
    assert peak < psutil.virtual_memory().total / 2 ** 20


def test_a_test_behind_the_training(tmp_path):
    """What was trained is whole, whatever the weights were that it started from; the same without training is not."""
    def stock_weights():
        model = Classifier('lora')
        model.backbone.load_state_dict(build('vit_mmpretrain').state_dict(), strict=False)
        return model

    loader = dict(batch_size=4, num_workers=0, dataset=Data(serialize_data=False),
                  collate_fn=dict(type='default_collate'), sampler=dict(type='DefaultSampler', shuffle=False))
    def made():
        return runner_of(tmp_path, stock_weights, dict(e3va=dict(type='e3va.ReportHook')), Hook(), epochs=1,
                         test_dataloader=loader, test_cfg={}, test_evaluator=[Metric()])
    runner = made()
    runner.train()
    assert 'score' in runner.test()
    with pytest.raises(ValueError, match='lacks 40 entries of VisionTransformer'):
        made().test()
