"""What --methods means, and the configs that come of it."""
import pytest
from mmengine.config import Config

from e3va.command.config import load_config
from e3va.cost.spec import parse, stock, tuned

SWIN = 'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py'


def read(text):
    return [(spec.label, dict(spec.method.method), spec.with_cp) for spec in parse(text)]


def test_names_options_and_checkpointing():
    assert read('full, full-cp,e3va:rank=16,join=sum,fixed') == [
        ('full', dict(type='Full'), False), ('full-cp', dict(type='Full'), True),
        ('e3va:rank=16,join=sum', dict(type='E3VA', rank=16, join='sum'), False), ('fixed', dict(type='Fixed'), False)]


def test_values_are_literals_or_strings():
    (label, lora, with_cp), (_, plain, _) = read('lora-cp:roles=("q", \'fc1\'),alpha=4.5,rank=4,lora')
    assert lora == dict(type='LoRA', roles=('q', 'fc1'), alpha=4.5, rank=4) and with_cp
    assert plain == dict(type='LoRA', rank=8, alpha=8)          # the file itself is untouched
    assert label == 'lora-cp:roles=("q", \'fc1\'),alpha=4.5,rank=4'
    assert [method['skip'] for _, method, _ in read('e3va:skip=False,e3va:skip=True')] == [False, True]


def test_a_file(tmp_path):
    (tmp_path / 'mine.py').write_text("method = dict(type='LoRA', rank=2)")
    assert read(f'{tmp_path}/mine.py:rank=3')[0][1] == dict(type='LoRA', rank=3)


@pytest.mark.parametrize('text, message', [
    ('full,e4va', "unknown method 'e4va'; near: e3va"),
    ('', 'names no method'),
    ('rank=3', "'rank=3' belongs to no method"),
    ('e3va,rank=3', "'rank=3' belongs to no method"),
    ('e3va:rank', 'e3va:rank is no option'),
    ('e3va:rnk=3', "has no option 'rnk'"),
    ('e3va:rank=0', 'rank must be an integer of at least 1'),
    ('e3va:mode=quick', "mode must be one of 'exact'"),
    ('full,full', "'full' is given twice")])
def test_wrong_words(text, message):
    with pytest.raises(ValueError, match=message.replace('(', r'\(')):
        parse(text)


def test_a_tuned_config_becomes_the_stock_one():
    cfg = stock(load_config('e3va::e3va/retinanet_swin_l_voc.py'))
    task = stock(load_config('e3va::_base_/tasks/voc_retinanet_swin_l.py'))
    assert cfg.model == task.model and cfg.model.backbone.type == 'SwinTransformer'
    more = load_config('e3va::dmlora/retinanet_swin_l_voc_dmlora.py')
    more.model.backbone.update(recompute='block', gelu='int8', backward=0.5, also=['norm3'])
    assert stock(more).model.backbone == task.model.backbone


def test_weights_are_dropped():
    cfg = load_config(SWIN)
    model = stock(cfg).model
    assert cfg.model.backbone.init_cfg.type == 'Pretrained' and model.backbone.init_cfg is None
    assert model.bbox_head == cfg.model.bbox_head
    nested = Config(dict(model=dict(
        pretrained='torchvision://resnet50',
        backbone=dict(type='ResNet', init_cfg=dict(type='Kaiming', layer='Conv2d')),
        neck=[dict(init_cfg=dict(type='Pretrained', checkpoint='x.pth'))])))
    assert stock(nested).model == dict(backbone=nested.model.backbone, neck=[dict(init_cfg=None)])


def test_the_config_of_a_method():
    cfg = stock(load_config(SWIN))
    plain, checkpointed = (tuned(cfg, spec).model.backbone for spec in parse('full,full-cp'))
    assert plain.type == 'e3va.Tuned' and plain.trunk == 'SwinTransformer' and plain.method == dict(type='Full')
    assert not plain.with_cp and checkpointed.with_cp


def test_a_trunk_without_checkpointing():
    cfg = stock(load_config('mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k-384px.py'))
    with pytest.raises(ValueError, match='VisionTransformer has no option with_cp'):
        tuned(cfg, parse('full-cp')[0])


def test_a_config_without_a_backbone():
    with pytest.raises(ValueError, match='does not have'):
        tuned(stock(Config(dict(model=dict(type='X')))), parse('full')[0])
