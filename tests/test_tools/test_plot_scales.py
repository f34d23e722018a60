"""tools/analysis_tools/plot_scales.py: the numbers of each block and role, from a checkpoint and from a delta."""
import pytest
import torch
from mmengine.config import Config
from torch import nn

import e3va
from e3va.dmlora.method import scaled
from tests.conftest import SWIN, build, tool

METHOD = dict(type='DMLoRA', rank=2, branches=2, roles=('v', 'q', 'proj'), scale=10.)
plot_scales = tool('analysis_tools/plot_scales.py')


@pytest.fixture(params=['vit_mmpretrain', 'swin_mmdet'])
def trunk(request):
    trunk = build(request.param, METHOD)
    for number, layer in enumerate(scaled(trunk).values()):
        layer.scale.data += number + 0.25 * torch.arange(len(layer.scale))
    return trunk


@pytest.mark.parametrize('kind', ['checkpoint', 'delta', 'inside'])
def test_numbers(trunk, tmp_path, capsys, kind):
    path = tmp_path / ('run.pth' if kind == 'checkpoint' else 'delta.safetensors')
    if kind == 'checkpoint':
        cfg = Config(dict(model=dict(backbone=dict(type='e3va.Tuned', method=METHOD))))
        torch.save(dict(state_dict={f'backbone.{name}': value for name, value in trunk.state_dict().items()},
                        meta=dict(cfg=cfg.pretty_text)), path)
    else:
        e3va.save_delta(nn.ModuleDict(dict(backbone2=trunk)) if kind == 'inside' else trunk, path)
    plot_scales.main([str(path), '--out', str(tmp_path / 'scales.png')])
    lines = [line.split('\t') for line in capsys.readouterr().out.splitlines()]
    swin = any('w_msa' in name for name in trunk.state_dict())
    blocks = [f'{i}.{j}' for i, depth in enumerate(SWIN['depths']) for j in range(depth)] if swin else list('0123')
    proj = 'attn.w_msa.proj' if swin else 'attn.proj'
    assert lines == [row for i, block in enumerate(blocks) for row in (
        [block, proj, f'{11 + 2 * i:.4f}'], [block, 'q', f'{10 + 2 * i:.4f}'], [block, 'v', f'{10.25 + 2 * i:.4f}'])]
    assert (tmp_path / 'scales.png').stat().st_size > 5000


@pytest.mark.parametrize('arguments,words', [
    (['gone.pth'], 'there is no checkpoint gone.pth'), (['other.pth'], 'holds no scales of DMLoRA'),
    (['other.pth', '--out', 'scales.txt'], 'must end in .png')])
def test_wrong_input(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={'bbox_head.scales.0.scale': torch.ones(())}, meta=dict(cfg='')), 'other.pth')
    with pytest.raises(SystemExit):
        plot_scales.main(arguments)
    assert words in capsys.readouterr().err
