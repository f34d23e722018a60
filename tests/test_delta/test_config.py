"""The config in a delta: what is recorded, and that a stranger's is data, of which nothing is run or fetched."""
import copy

import pytest
from mmengine.config import Config

from e3va.command.config import load_config
from e3va.delta.config import heard, told
from tests.test_serve.models import config

RUNS = "__import__('os').system('touch HOSTILE')"


@pytest.fixture(scope='module')
def good():
    """What a detector's delta says."""
    import ast

    import mmdet.models  # noqa: F401
    return ast.literal_eval(told(config('mmdet', 'trunk.pth', 'e3va')))


def put(found, place, value):
    """The same with a value at a dotted place."""
    found = copy.deepcopy(found)
    *way, last = place.split('.')
    inner = found
    for key in way:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[last] = value
    return found


def test_it_comes_back(good):
    """With tuples, which transforms tell from lists; without what trains, reads annotations or loads files."""
    cfg = heard(repr(good))
    assert cfg.scope == 'mmdet' and cfg.model.type == 'MaskRCNN' and cfg.model.train_cfg is None
    assert cfg.pipeline[1].scale == (96, 96)
    assert cfg.model.backbone.method.type == 'E3VA'
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint='trunk.pth', prefix='backbone.')


@pytest.mark.parametrize('name', [
    'mmdet::atss/atss_r50_fpn_1x_coco.py', 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py',
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'mmseg::swin/swin-base-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py', 'mmpretrain::convnext/convnext-base_32xb128_in1k.py'])
def test_stock_configs_are_taken(name):
    cfg = load_config(name)
    assert heard(told(cfg)).model.type == cfg.model.type


def test_what_has_no_config():
    assert told(None) is None and told(Config(dict(model=dict(type='X', scale=print)))) is None


@pytest.mark.parametrize('place, value', [
    ('model.type', 'os.system'), ('model.type', 'subprocess.Popen'), ('model.type', 'torch.hub.load'),
    ('model.neck.type', 'mmengine.fileio.get'), ('model.rpn_head.loss_cls.type', 'builtins.eval'),
    ('model.test_cfg.rcnn.nms.type', RUNS), ('model.test_cfg.rpn.nms.type', 'print'),
    ('model.roi_head.bbox_roi_extractor.roi_layer.type', 'os.system'),
    ('model.type', 'KnowledgeDistillationSingleStageDetector'), ('model.teacher_config', 'teacher.py'),
    ('model.backbone.type', 'mmpretrain.TIMMBackbone'), ('model.backbone.trunk', 'os.system'),
    ('model.backbone.method', dict(type='LoRA', targets='(a+)+')), ('model.backbone.depths', [10 ** 9]),
    ('model.roi_head.bbox_head.num_classes', 10 ** 9), ('model.language_model', dict(type='BertModel')),
    ('pipeline.0.type', 'mmengine.Config.fromfile'), ('pipeline.1.type', 'torchvision/ConvertImageDtype'),
    ('pipeline.1.type', 'Albu'), ('pipeline.0.imdecode_backend', 'os.system'),
    ('model.neck.note', 'http://somewhere/else'), ('scope', 'os'), ('scope', 7), ('more', 1), ('model', 'X'),
    ('pipeline', [RUNS]), ('model.type', ['MaskRCNN'])])
def test_hostile(good, tmp_path, monkeypatch, place, value):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        heard(repr(put(good, place, value)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', [RUNS, 'dict(scope=1)', '[' * 10000, '(' * 200 + ')' * 200, '', 'None', '1' * 5000])
def test_no_values(text):
    with pytest.raises(ValueError):
        heard(text)


def test_what_would_be_fetched_is_left_out(good):
    """Files and addresses that stock classes would load from."""
    odd = put(put(good, 'model.neck.init_cfg', dict(type='Pretrained', checkpoint='http://x/y')),
              'pipeline.0.backend_args', dict(backend='petrel'))
    cfg = heard(repr(odd))
    assert 'init_cfg' not in cfg.model.neck and 'backend_args' not in cfg.pipeline[0]
