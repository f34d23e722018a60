"""tools/analysis_tools/cost.py on stock configs of reduced width: rows, ratios, tables, the plot, bad input."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import tool

ROOT = Path(__file__).parents[2]
SWIN = 'depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8]'
CONFIGS = dict(
    instances=f'''
_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
model = dict(
    backbone=dict(embed_dims=24, {SWIN}),
    neck=dict(in_channels=[24, 48, 96, 192], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32), bbox_head=dict(in_channels=32, fc_out_channels=32),
        mask_roi_extractor=dict(out_channels=32), mask_head=dict(num_convs=1, in_channels=32, conv_out_channels=32)))
''',
    semantic=f'''
_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(embed_dims=24, {SWIN}), decode_head=dict(in_channels=[24, 48, 96, 192], channels=32),
    auxiliary_head=dict(in_channels=96, channels=32))
''',
    classification='''
_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'
model = dict(
    backbone=dict(
        type='e3va.Tuned', trunk='SwinTransformer', method=dict(type='LoRA', rank=1),
        arch=dict(_delete_=True, embed_dims=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8])),
    head=dict(in_channels=192))
''',
    plain='''
_base_ = 'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k-384px.py'
model = dict(backbone=dict(
    arch=dict(_delete_=True, embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)),
    head=dict(in_channels=24))
''')
KEYS = {'config', 'method', 'trained', 'delta_bytes', 'kept_bytes', 'saved_bytes', 'alive_bytes', 'peak_bytes',
        'forward_gflops', 'backward_gflops', 'step_ms', 'step_ms_min', 'step_ms_max', 'inference_ms',
        'inference_peak_bytes', 'added_parameters', 'added_gflops', 'height', 'width', 'batch', 'dtype', 'torch',
        'device', 'command'}


pytestmark = pytest.mark.usefixtures('config_folder')
cost = tool('analysis_tools/cost.py')


def rows(config, *arguments):
    cost.main([f'{config}.py', '--out', 'rows.json', *arguments])
    return {row['method']: row for row in json.loads(Path('rows.json').read_text())}


@pytest.fixture
def printed(capsys):
    return lambda: capsys.readouterr().out


def test_a_detector(printed):
    """Real numbers in a row for each method, the ratios from them, and both in the tables."""
    methods = ['full', 'full-cp', 'fixed', 'e3va:rank=2', 'lora']
    got = rows('instances', '--methods', ','.join(methods), '--size', '64', '96', '--steps', '2', '--batch', '1',
               '--plot', 'cost.png')
    assert list(got) == methods
    full, fixed = got['full'], got['fixed']
    for row in got.values():
        assert KEYS < set(row)
        assert (row['height'], row['width'], row['batch'], row['steps'], row['dtype']) == (64, 96, 1, 2, 'fp32')
        assert 0 < row['step_ms_min'] <= row['step_ms'] <= row['step_ms_max']
        assert row['step_to_full'] == row['step_ms'] / full['step_ms']
        assert row['step_to_fixed'] == row['step_ms'] / fixed['step_ms']
        assert row['saved_fraction'] == ((row['saved_bytes'] - fixed['saved_bytes'])
                                         / (full['saved_bytes'] - fixed['saved_bytes']))
        assert abs(row['alive_bytes'] / row['saved_bytes'] - 1) < 0.05
        assert row['peak_bytes'] > row['kept_bytes']
        assert row['forward_gflops'] == pytest.approx(full['forward_gflops'], rel=0.1)
    # what only some of the methods do: keep every activation, compute again, train nothing in the trunk, add layers
    assert full['saved_bytes'] > max(got[name]['saved_bytes'] for name in methods[1:])
    assert got['full-cp']['backward_gflops'] > full['backward_gflops'] > fixed['backward_gflops']
    assert fixed['trained'] == fixed['delta_bytes'] == 0 < fixed['trained_head'] == full['trained_head']
    assert got['lora']['delta_bytes'] == 4 * got['lora']['trained']
    # everything trains: weights, gradients and two moments of 4 bytes; buffers and Adam's counts of steps are little
    assert full['kept_bytes'] == pytest.approx(16 * (full['trained'] + full['trained_head']), rel=1e-2)
    assert [name for name, row in got.items() if row['added_parameters']] == ['e3va:rank=2']
    assert [name for name, row in got.items() if row['added_gflops']] == ['e3va:rank=2']
    assert 0 < got['lora']['trained'] < full['trained'] and 0 < got['e3va:rank=2']['trained'] < full['trained']

    text = printed()
    assert max(map(len, text.splitlines())) <= 120
    assert len(re.findall(r'^│ e3va:rank=2 ', text, re.M)) == 3
    assert f'{fixed["saved_bytes"] / 2 ** 20:,.1f}' in text and f'{got["lora"]["step_to_full"]:.2f}' in text
    with Image.open('cost.png') as image:
        assert len(image.convert('RGB').getcolors(1 << 20)) > 20            # points of five colours, not a blank page


def test_a_segmenter_in_mixed_precision():
    got = rows('semantic', '--methods', 'full,fixed', '--size', '64', '64', '--steps', '1', '--dtype', 'bf16')
    single = rows('semantic', '--methods', 'full', '--size', '64', '64', '--steps', '1')
    assert got['full']['dtype'] == 'bf16'
    assert got['full']['saved_bytes'] != single['full']['saved_bytes']
    assert got['full']['kept_bytes'] == single['full']['kept_bytes']        # weights stay in single precision
    assert 'saved_fraction' not in single['full'] and 'step_to_fixed' not in single['full']


def test_a_classifier_that_was_tuned_already():
    """The config's own method is taken out, and the images have the size that the config trains on."""
    got = rows('classification', '--methods', 'lora:rank=2,fixed', '--steps', '1')
    assert (got['fixed']['height'], got['fixed']['width']) == (224, 224)
    # q and v of five blocks: two slices of (rank, C) and (C, rank) each
    assert got['lora:rank=2']['trained'] == sum(2 * 2 * 2 * width for width in (24, 48, 96, 96, 192))
    assert got['fixed']['saved_bytes'] < got['lora:rank=2']['saved_bytes']


REFUSED = {                                                     # arguments: part of the message
    'instances.py --methods full,e4va': "unknown method 'e4va'; near: e3va",
    'instances.py --methods e3va:rnk=3': "has no option 'rnk'",
    'instances.py --steps 0': '--steps must be at least 1, not 0',
    'instances.py --batch 0': '--batch must be at least 1, not 0',
    'instances.py --size 0 32': '--size must be at least 1, not 0',
    'instances.py --out nowhere/rows.json': '--out nowhere/rows.json cannot be written: No such file',
    'instances.py --out .': '--out . cannot be written: Is a directory',
    'instances.py --plot nowhere/cost.png': '--plot nowhere/cost.png cannot be written: No such file',
    'instances.py --plot cost.xyz': 'the name must end in .png',
    'gone.py': 'there is no config file gone.py',
    'bare.py': 'which this config does not have',
    'plain.py --methods full-cp': 'VisionTransformer has no option with_cp',
    'classification.py --methods full --size 64 64': 'full cannot train at 64x64, batch 2: AssertionError: ',
    'semantic.py --methods fixed --size 64 64 --batch 1': 'Expected more than 1 value per channel',
    'instances.py --dtype fp16': '--dtype fp16 needs a GPU',
}


@pytest.mark.parametrize('arguments', REFUSED)
def test_wrong_input_is_one_line(capsys, arguments):
    if 'fp16' in arguments and torch.cuda.is_available():
        pytest.skip('right on this machine')
    Path('bare.py').write_text("default_scope = 'mmdet'\nmodel = dict(type='X')")
    with pytest.raises(SystemExit) as ended:
        cost.main(arguments.split())
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith('error: ') and REFUSED[arguments] in error[0]
    assert not list(Path().glob('*.xyz')) and not list(Path().glob('rows.json'))


def test_in_a_process_of_its_own():
    """stdout holds the tables and nothing of the libraries; the row names the command that gave it."""
    arguments = 'semantic.py --methods fixed --size 64 64 --steps 1 --out rows.json'
    ended = subprocess.run([sys.executable, ROOT / 'tools/analysis_tools/cost.py', *arguments.split()],
                           capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.startswith('semantic.py: 64x64, batch 2, fp32\n')
    row, = json.loads(Path('rows.json').read_text())
    assert row['command'].endswith(f'cost.py {arguments}')
