"""Trained parameters of E3VA against the paper's tables: 12 a S + 3 S + 2 sum C, with S the sum of depth x width."""
import pytest

import e3va
from e3va.registry import MODELS

SIZES = dict(
    b=dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    l=dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)))


def count(size, options, **changes):
    """Trained parameters of the stock mmdet Swin of that size under E3VA."""
    import mmdet.models  # noqa: F401
    trunk = MODELS.build(dict(type='e3va.Tuned', trunk='mmdet.SwinTransformer', **SIZES[size], **changes,
                              method=dict(type='E3VA', **options)))
    return e3va.report(trunk)['trained']


@pytest.mark.parametrize('size,options,exact,printed', [
    ('b', dict(rank=8), 1_195_008, '1.20'), ('b', dict(rank=16), 2_350_080, '2.35'),
    ('b', dict(rank=32), 4_660_224, '4.66'), ('l', dict(rank=8), 1_792_512, '1.79'),
    ('l', dict(rank=16), 3_525_120, '3.53'), ('l', dict(rank=32), 6_990_336, '6.99'),      # the paper prints 7.00
    ('l', dict(adapter='standard', mid=32), 2_353_536, '2.35')])
def test_tables_1_2_5(size, options, exact, printed):
    trained = count(size, options)
    assert trained == exact and f'{trained / 1e6:.2f}' == printed


def test_voc():
    """RetinaNet takes stages 1 to 3, so stage 0 has no norm in front of the neck."""
    assert count('l', dict(rank=8), out_indices=(1, 2, 3)) == 1_792_128


def test_trainable_downsampling_of_table_6():
    """The copies of three merges: LayerNorm(4 C) and a bias-free 4 C -> 2 C, at widths C, 2 C, 4 C."""
    merges = sum(2 * 4 * c + 4 * c * 2 * c for c in (192, 384, 768))
    assert merges == 6_203_904
    assert count('l', dict(rank=8, downsampling='trainable')) == 1_792_512 + merges


def test_formula_on_any_swin():
    """12 a S + 3 S + 2 sum C, for a shape that is in no table."""
    import mmdet.models  # noqa: F401
    depths, width, rank = (1, 3, 2, 1), 48, 5
    widths = [width * 2 ** i for i in range(4)]
    total = sum(depth * c for depth, c in zip(depths, widths))
    trunk = MODELS.build(dict(type='e3va.Tuned', trunk='mmdet.SwinTransformer', embed_dims=width, depths=depths,
                              num_heads=(2, 4, 8, 16), method=dict(type='E3VA', rank=rank)))
    assert e3va.report(trunk)['trained'] == 12 * rank * total + 3 * total + 2 * sum(widths)
