"""tools/analysis_tools/plot_selection.py: counts of each block and role, from a checkpoint and from a delta."""
import pytest
import torch

import e3va
from e3va.gps.method import sparse_layers
from tests.conftest import SWIN, build, tool

plot_selection = tool('analysis_tools/plot_selection.py')
BLOCKS = [f'{i}.{j}' for i, depth in enumerate(SWIN['depths']) for j in range(depth)]
# widths 24 (Swin: doubled from stage to stage), MLPs of 4 (ViT of mmpretrain: 2) times the width
VIT = {'q, k, v': 72, 'proj': 24, 'fc1': 48, 'fc2': 24}


def table(printed):
    return [line.split('\t') for line in printed.splitlines()[:-1]]


@pytest.mark.parametrize('kind', ['checkpoint', 'delta'])
def test_counts(tmp_path, capsys, kind):
    """K = 2: two entries for each output of each layer, whatever was selected."""
    trunk = build('vit_mmpretrain', dict(type='GPS', k=2, criterion='magnitude'))
    path = tmp_path / ('run.pth' if kind == 'checkpoint' else 'delta.safetensors')
    if kind == 'checkpoint':
        torch.save(dict(state_dict={f'backbone.{name}': value for name, value in trunk.state_dict().items()}), path)
    else:
        e3va.save_delta(trunk, path)
    plot_selection.main([str(path), '--out', str(tmp_path / 'selection.png')])
    printed = capsys.readouterr().out
    cells = table(printed)
    assert [row[:3] for row in cells] == [['stem', 'stem', '48']] + [
        [str(block), role, str(2 * rows)] for block in range(4) for role, rows in VIT.items()]
    if kind == 'checkpoint':
        layer = sparse_layers(trunk)['layers.0.ffn.layers.1']
        read = len({int(place) % 48 for place in layer.index.flatten()})
        assert cells[4][3:] == [f'{100 * 2 / 48:.3f} %', f'{read} of 48 inputs']
    assert printed.splitlines()[-1].startswith(f'{48 + 4 * 2 * 168:,} selected weights')
    assert (tmp_path / 'selection.png').stat().st_size > 5000


@pytest.mark.parametrize('trunk,blocks,roles', [
    ('swin_mmdet', ['stem', BLOCKS[0], 'down 0', *BLOCKS[1:3], 'down 1', BLOCKS[3], 'down 2', BLOCKS[4]],
     {'stem', 'downsample', 'q, k, v', 'proj', 'fc1', 'fc2'}),
    ('swin_timm', ['stem', BLOCKS[0], 'down 1', *BLOCKS[1:3], 'down 2', BLOCKS[3], 'down 3', BLOCKS[4]],
     {'stem', 'downsample', 'q, k, v', 'proj', 'fc1', 'fc2'}),
    ('vit_timm', ['stem', *'0123'], {'stem', 'q, k, v', 'proj', 'fc1', 'fc2'}),
    ('convnext_mmpretrain', ['down 0', '0.0', 'down 1', '1.0', '1.1', 'down 2', '2.0', '2.1', 'down 3', '3.0'],
     {'downsample', 'depthwise', 'fc1', 'fc2'}),
    ('convnext_timm', ['stem', '0.0', 'down 1', '1.0', '1.1', 'down 2', '2.0', '2.1'],
     {'stem', 'downsample', 'depthwise', 'fc1', 'fc2'})])
def test_labels(trunk, blocks, roles):
    """Blocks in the order of the data, what lies between stages in its place; every layer has a role."""
    tuned = build(trunk, dict(type='GPS', criterion='random', level='net'))
    found = plot_selection.rows(tuned.state_dict())
    assert list(dict.fromkeys(row['block'] for row in found)) == blocks
    assert {row['role'] for row in found} == roles
    assert sum(row['selected'] for row in found) == sum(map(len, (
        layer.values.flatten() for layer in sparse_layers(tuned).values())))


@pytest.mark.parametrize('arguments,words', [
    (['gone.pth'], 'there is no checkpoint gone.pth'), (['other.pth'], 'holds no selection of GPS'),
    (['other.pth', '--out', 'selection.txt'], 'must end in .png')])
def test_wrong_input(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={'head.index': torch.ones(())}, meta=dict(cfg='')), 'other.pth')
    with pytest.raises(SystemExit):
        plot_selection.main(arguments)
    assert words in capsys.readouterr().err
