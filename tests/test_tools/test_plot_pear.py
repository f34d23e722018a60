"""tools/analysis_tools/plot_pear.py: who serves whom, from a checkpoint and from a delta; and the picture."""
import pytest
import torch
from mmengine.config import Config

import e3va
from e3va.pear import picture as pear_map
from e3va.pear import plan as pear
from tests.conftest import VIT_ARCH, build, tool

plot_pear = tool('analysis_tools/plot_pear.py')
LORA = dict(type='LoRA', rank=2)


def pruned(trunk, method, **options):
    """A trunk of which half was pruned, by scores 1, 2, 3, ... in the order of its positions."""
    trunk = build(trunk, method)
    groups, sizes = pear.alike(trunk, 'global')
    pear.prune(trunk, pear.plan(torch.arange(1., 1 + len(sizes)), groups, sizes, 0.5, **options))
    return trunk


@pytest.mark.parametrize('kind', ['checkpoint', 'delta', 'folder'])
def test_rows(tmp_path, capsys, kind):
    trunk, path = pruned('vit_mmpretrain', LORA), tmp_path / ('a.safetensors' if kind == 'delta' else 'run.pth')
    if kind != 'delta':
        backbone = dict(type='e3va.Tuned', trunk='VisionTransformer', method=LORA, arch=VIT_ARCH, img_size=64)
        cfg = Config(dict(default_scope='mmpretrain', model=dict(backbone=backbone)))
        torch.save(dict(state_dict={f'backbone.{name}': value for name, value in trunk.state_dict().items()},
                        meta=dict(cfg=cfg.pretty_text, iter=1)), path)
    else:
        e3va.save_delta(trunk, path)
    if kind == 'folder':                                                # that has moved since
        (tmp_path / 'last_checkpoint').write_text('/elsewhere/run.pth')
        path = tmp_path
    plot_pear.main([str(path), '--out', str(tmp_path / 'pear.png')])
    lines = [line.split('\t') for line in capsys.readouterr().out.splitlines() if '\t' in line]
    places = [f'{i} {role}' for i in range(4) for role in 'qv']
    served = [4, 5, 6, 7, 4, 5, 6, 7]                                   # by hand: the weaker half, rank to rank
    assert lines == [[*places[i].split(), f'{1 + i:g}', places[served[i]]] for i in range(8)]
    assert (tmp_path / 'pear.png').stat().st_size > 5000


@pytest.mark.parametrize('trunk,method,roles,first', [
    ('swin_mmdet', LORA, ['q', 'v'], '0.0'), ('swin_timm', dict(type='Adapter', rank=2), ['proj', 'fc2'], '0.0'),
    ('swin_mmpretrain', dict(type='AdaptFormer', rank=2), ['mlp'], '0.0'),
    ('swin_mmdet', dict(type='E3VA', rank=1), ['attn', 'mlp'], '0.0'),
    ('convnext_timm', dict(type='AdaptFormer', rank=2), ['mlp'], '0.0'),
    ('vit_timm', dict(type='E3VA', rank=1), ['attn', 'mlp'], '0')])
def test_places(trunk, method, roles, first):
    """Every position of every kind of trunk has a block and a role of its own."""
    rows = pear.rows(pruned(trunk, method))
    places = [(row['block'], row['role']) for row in rows]
    assert len(places) == len(set(places)) and places[0][0] == first
    assert list(dict.fromkeys(role for _, role in places)) == roles
    assert {row['per_entry'] for row in rows} == {len(first) > 1}       # stages differ in width
    image = pear_map.draw(rows)
    assert image.ndim == 3 and image.shape[2] == 3 and len({tuple(pixel) for pixel in image.reshape(-1, 3)}) > 5


@pytest.mark.parametrize('arguments,words', [
    (['gone.pth'], 'there is no checkpoint gone.pth'), (['other.pth'], 'holds no table of Pear'),
    (['.'], 'in which no run has left a checkpoint'),
    (['other.pth', '--out', 'pear.txt'], 'must end in .png')])
def test_wrong_input(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={'head.weight': torch.ones(())}, meta=dict(cfg='')), 'other.pth')
    with pytest.raises(SystemExit):
        plot_pear.main(arguments)
    assert words in capsys.readouterr().err
