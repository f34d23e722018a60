"""Growth: what is varied, the line that is fitted, and the whole of it through the tool."""
import json
from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image

from e3va.cost import growth, spec
from tests.conftest import tool

CONFIGS = dict(small='''
_base_ = 'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k-384px.py'
model = dict(backbone=dict(
    arch=dict(_delete_=True, embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)),
    head=dict(in_channels=24))
''')


def test_words():
    assert growth.parse('size=240x400,480x800') == ('size', [(240, 400), (480, 800)])
    assert growth.parse('batch=1,2') == ('batch', [1, 2])
    for wrong in ('size=240,480', 'batch=1', 'batch=2,2', 'batch=1,b', 'batch', 'width=1,2', 'rank=.5,2', 'batch=1,,2'):
        with pytest.raises(ValueError, match='--over .*write e.g. size=240x400'):
            growth.parse(wrong)


def test_the_line():
    """y = 3 + 2 x but for one point that lies apart by a tenth of it."""
    rows = [dict(method='m', x=x, saved_bytes=3 + 2 * x, total_bytes=5., step_ms=3 + 2 * x + (0.1 if x == 3 else 0))
            for x in (1, 2, 3, 4)]
    fits = growth.laws(rows)
    assert fits['m', 'saved_bytes'][:2] == pytest.approx((3, 2)) and fits['m', 'saved_bytes'][2] < 1e-9
    assert fits['m', 'total_bytes'][:2] == pytest.approx((5, 0), abs=1e-9)
    assert 0 < fits['m', 'step_ms'][2] < 0.1 / 9


@pytest.mark.parametrize('backbone,want', [
    (dict(depths=[2, 2, 6, 2]), dict(depths=[2, 2, 14, 2])),
    (dict(arch=dict(depths=[2, 2, 6, 2])), dict(arch=dict(depths=[2, 2, 14, 2]))),
    (dict(arch=dict(num_layers=12)), dict(arch=dict(num_layers=20))),
    (dict(depth=12), dict(depth=20))])
def test_depth(backbone, want):
    cfg = Config(dict(model=dict(backbone=backbone)))
    growth.deepen(cfg, 20)
    assert cfg.model.backbone.to_dict() == want


def test_what_has_no_depth():
    with pytest.raises(ValueError, match='other stages have 6 blocks'):
        growth.deepen(Config(dict(model=dict(backbone=dict(depths=[2, 2, 6, 2])))), 6)
    for backbone in (dict(arch='tiny'), dict(depths=[1, 2])):
        with pytest.raises(ValueError, match='neither depths of stages nor num_layers'):
            growth.deepen(Config(dict(model=dict(backbone=backbone))), 6)


def test_rank_goes_where_there_is_one():
    found = [growth.with_rank(each, 3).method.method for each in spec.parse('fixed,lora,e3va')]
    assert [method.get('rank') for method in found] == [None, 3, 3]


@pytest.mark.usefixtures('config_folder')
def test_the_tool(capsys):
    """Rows at each value, tables, a picture; memory over the batch is a straight line."""
    tool('analysis_tools/cost.py').main([
        'small.py', '--methods', 'fixed,e3va:rank=2', '--over', 'batch=1,2,3', '--size', '32', '32', '--steps', '1',
        '--out', 'rows.json', '--plot', 'growth.png'])
    rows = json.loads(Path('rows.json').read_text())
    assert [(row['method'], row['x'], row['batch']) for row in rows] == [
        (method, n, n) for n in (1, 2, 3) for method in ('fixed', 'e3va:rank=2')]
    a, b, worst = growth.laws(rows)['e3va:rank=2', 'saved_bytes']
    assert b > 0 and worst < 0.01
    assert Image.open('growth.png').size[0] > 1000
    out = capsys.readouterr().out
    assert 'x: images of a batch' in out and 'a + b x' in out
