"""Partial: which blocks train, where backpropagation stops, the printed counts."""
import pytest

import e3va
from e3va.trunks import used
from tests.conftest import TRUNKS, build, image, projected

from .counts import SWIN, count
from .test_bitfit import trained


def blocks(model):
    """The trained parameters' names without what lies inside a block."""
    depth = 4 if hasattr(model, 'stages') or 'layers.0.blocks.0' in dict(model.named_modules()) else 2
    return {'.'.join(name.split('.')[:depth]) for name in trained(model)}


@pytest.mark.parametrize('trunk,k,last', [
    ('swin_mmdet', 1, {'stages.3.blocks.0'}),
    ('swin_mmdet', 3, {'stages.1.blocks.1', 'stages.2.blocks.0', 'stages.3.blocks.0'}),     # no downsampling between
    ('swin_mmdet_partial', 1, {'stages.2.blocks.0'}), ('swin_timm', 1, {'layers.3.blocks.0'}),
    ('vit_mmpretrain_maps', 2, {'layers.1', 'layers.2'}), ('vit_timm', 1, {'blocks.3'})])
def test_what_trains(trunk, k, last):
    """Whole blocks, the last in front of the last output; norms in front of the neck only where asked for."""
    tuned = build(trunk, dict(type='Partial', blocks=k))
    assert blocks(tuned) == last
    assert trained(tuned) == {name for name in tuned.tuning.keys if name.startswith(tuple(f'{b}.' for b in last))
                              and 'index' not in name}
    norms = trained(build(trunk, dict(type='Partial', blocks=k, train_out_norms=True))) - trained(tuned)
    assert {name.split('.')[0] for name in norms} == set(tuned.tuning.parts.out_norms(tuned))


@pytest.mark.parametrize('trunk', TRUNKS)
def test_frozen_blocks_get_no_gradient(trunk):
    """Backward ends at the first trained block."""
    tuned, needs = build(trunk, dict(type='Partial')), []
    kept = [block for stage in used(tuned) for block in stage]          # behind them stock trunks run idle blocks
    for block in kept:
        block.register_forward_pre_hook(lambda block, inputs: needs.append(inputs[0].requires_grad))
    projected(tuned(image(trunk))).backward()
    assert len(needs) == len(kept) and not any(needs[:-1])             # the last is asked to, for the stock with_cp


@pytest.mark.parametrize('size,printed', [('b', 12_601_632), ('l', 28_339_632)])
def test_counts_of_e3va_tables(size, printed):
    assert count('Partial', 'mmdet.SwinTransformer', **SWIN[size]) == printed


def test_refusals():
    for options, words in [(dict(blocks=0), 'blocks must be'), (dict(blocks=5), 'at least 1 and at most 4, not 5')]:
        with pytest.raises(ValueError, match=words):
            build('vit_mmpretrain', dict(type='Partial', **options))
    assert e3va.report(build('vit_mmpretrain', dict(type='Partial', blocks=4)))['trained']
