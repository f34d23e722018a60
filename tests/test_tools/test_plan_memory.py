"""tools/analysis_tools/plan_memory.py on stock configs of reduced width: parts, ticks, Table 4, bad input."""
import re

import pytest

from tests.conftest import tool

CONFIGS = dict(
    dense='''
_base_ = 'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py'
model = dict(
    backbone=dict(embed_dims=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8]),
    neck=dict(in_channels=[48, 96, 192], out_channels=32), bbox_head=dict(in_channels=32, feat_channels=32))
''',
    semantic='''
_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(embed_dims=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8]),
    decode_head=dict(in_channels=[24, 48, 96, 192], channels=32), auxiliary_head=dict(in_channels=96, channels=32))
''',
    small='''
_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8])),
    head=dict(in_channels=192))
''',
    bare='''
default_scope = 'mmdet'
model = dict(type='X')
''')
pytestmark = pytest.mark.usefixtures('config_folder')
plan_memory = tool('analysis_tools/plan_memory.py')


@pytest.fixture
def lines(capsys):
    """Runs the tool; gives the cells of each line of its tables, and all that it printed."""
    def run(*arguments):
        plan_memory.main(list(arguments))
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 120
        cells = [[cell.strip() for cell in line.strip('│').split('│')] for line in text.splitlines() if line[0] == '│']
        return cells, text
    return run


def test_parts_and_ticks(lines):
    """Every number of a row fits the others, and each tick and largest batch is what they say."""
    cards = [0.03, 0.08, 0.2]                                           # GiB; the smallest holds not even the weights
    rows, text = lines('dense.py', '--methods', 'full,e3va:rank=2', '--size', '96', '160', '--reserve', '0.01',
                       '--gpu', '0.03', '--gpu', '0.08', '0.2')
    assert text.startswith('dense.py: 96x160, fp32, 8 boxes in an image')
    assert 'has 0.01 GiB (--reserve) more' in text and 'not counted' in text
    parts, most = [row for row in rows if len(row) == 11], [row for row in rows if len(row) == 4]
    assert [row[0] for row in most] == ['full', 'e3va:rank=2']
    for method, *largest in most:
        own = [row for row in parts if row[0] == method]
        assert [int(row[1]) for row in own] == [2 ** i for i in range(len(own))]
        for row in own:
            batch, weights, gradients, adam, saved, workspace, peak = (int(cell.replace(',', '')) for cell in row[1:8])
            assert abs(adam - 2 * gradients) <= 1 and gradients <= weights
            assert abs(weights + adam + saved + workspace - peak) <= 2
            for tick, card, fits in zip(row[8:], cards, largest):
                assert tick == ('✓' if fits != '-' and batch <= int(fits) else '✗')
                if abs(peak - (card - 0.01) * 1024) > 1:
                    assert (tick == '✓') == (peak < (card - 0.01) * 1024)
        assert own[-1][-1] == '✗' and (len(own) == 1 or own[-2][-1] == '✓')       # up to the first that fits nowhere
    full, ours = (int(row[-1]) for row in most)
    assert 0 < full < ours


def test_where_one_image_does_not_train(lines):
    """The pooling of UPerNet gives a batch norm one value a channel there; e3va and the paper's cards by default."""
    rows, text = lines('semantic.py', '--size', '64', '64', '--dtype', 'bf16')
    assert [row[:2] for row in rows[:2]] == [['e3va', '2'], ['e3va', '4']]
    assert '64x64, bf16' in text and re.search('11 GiB.*16 GiB.*24 GiB.*32 GiB', text)


def test_table_4(lines, monkeypatch):
    """On a small model everything fits; beside it are the ticks of the paper's table."""
    monkeypatch.setattr(plan_memory, 'TABLE4', dict(
        plan_memory.TABLE4, config='dense.py', method='full,lora:rank=2,e3va:rank=2'))
    rows, text = lines('--table4', '--size', '64', '96')
    assert [[*row[:2], *(cell[-1] for cell in row[8:])] for row in rows if len(row) == 12] == [
        ['full', '1', *'✗✗✓✓'], ['full', '2', *'✗✗✗✗'], ['lora:rank=2', '1', *'✗✗✓✓'],
        ['lora:rank=2', '2', *'✗✗✗✗'], ['e3va:rank=2', '1', *'✓✓✓✓'],
        ['e3va:rank=2', '2', *'✗✓✓✓']]
    assert all(cell[0] == '✓' for row in rows if len(row) == 12 for cell in row[8:])
    assert '128 boxes in an image' in text and plan_memory.DIFFERENCES in text


REFUSED = {                                                     # arguments: part of the message
    'dense.py --gpu 0': '--gpu takes GiB, a number above 0, not 0',
    'dense.py --gpu 11 -3': '--gpu takes GiB, a number above 0, not -3',
    'dense.py --gpu 11 big': '--gpu takes GiB, a number above 0, not big',
    'dense.py --gpu nan': 'a number above 0, not nan',
    'dense.py --gpu inf': 'a number above 0, not inf',
    'dense.py --reserve -1': '--reserve takes GiB, a number of at least 0, not -1',
    'dense.py --method e4va': "unknown method 'e4va'; near: e3va",
    'dense.py --method e3va:rnk=3': "has no option 'rnk'",
    'dense.py --size 0 32': '--size must be at least 1, not 0',
    'dense.py --objects 0': '--objects must be at least 1, not 0',
    'small.py --size 32 32': 'e3va cannot train at 32x32, batch 2: AssertionError',
    'gone.py': 'there is no config file gone.py',
    'bare.py': 'which this config does not have',
    '--gpu 11': 'give a config, or --table4',
    'dense.py --table4': 'give a config, or --table4',
}


@pytest.mark.parametrize('arguments', REFUSED)
def test_wrong_input_is_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        plan_memory.main(arguments.split())
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith('error: ') and REFUSED[arguments] in error[0]
