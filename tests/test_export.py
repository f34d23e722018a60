"""Tuned and merged models through torch.export, torch.onnx.export and onnxruntime: the outputs stay what they are."""
import io

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.utils._pytree import tree_leaves

import e3va
from e3va.command.config import apply_method, load_config
from tests.conftest import METHODS, SWIN
from tests.test_serve.models import config

BOUND = 1e-4


class Network(nn.Module):
    """From the image to what the heads give out, before boxes are chosen."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return self.model(image, mode='tensor')


def classifier(method, vit):
    cfg = config('mmpretrain', 'none', method, vit)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return finished(MODELS.build(cfg.model), method)


def detector(method):
    """RetinaNet on a small Swin."""
    cfg = load_config('mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py')
    cfg.model.backbone.update(SWIN, init_cfg=None, drop_path_rate=0., depths=(1, 1, 1, 1))
    cfg.model.neck.update(in_channels=[48, 96, 192], out_channels=16)
    cfg.model.bbox_head.update(num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return finished(MODELS.build(apply_method(cfg, Config(dict(method=METHODS[method]))).model), method)


def finished(model, method):
    """In eval, its adapters moved, merged where that is possible."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval()
    return Network(e3va.merge(model) if method == 'lora' else model).eval()


CASES = dict(vit_lora=(lambda: classifier('lora', True), (1, 3, 64, 64)),
             vit_e3va=(lambda: classifier('e3va', True), (1, 3, 64, 64)),
             retinanet_lora=(lambda: detector('lora'), (1, 3, 64, 96)),
             retinanet_e3va=(lambda: detector('e3va'), (1, 3, 64, 96)))


def case(name):
    """(network, image, its outputs)."""
    make, shape = CASES[name]
    network, image = make(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network, image, tree_leaves(network(image))


@pytest.mark.parametrize('name', ['vit_e3va', *(pytest.param(name, marks=pytest.mark.slow) for name in (
    'vit_lora', 'retinanet_lora', 'retinanet_e3va'))])
def test_torch_export(name):
    network, image, wanted = case(name)
    exported = torch.export.export(network, (image, )).module()
    assert max(float((a - b).abs().max()) for a, b in zip(tree_leaves(exported(image)), wanted)) < 1e-5


@pytest.mark.parametrize('name', CASES)
def test_onnx(name):
    """By the exporter that traces, which needs onnx alone."""
    pytest.importorskip('onnx')
    run(name, dynamo=False, opset_version=17)


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_onnx_of_torch_export(name):
    pytest.importorskip('onnxscript')
    run(name, dynamo=True)


def run(name, **options):
    runtime = pytest.importorskip('onnxruntime')
    network, image, wanted = case(name)
    file = io.BytesIO()
    torch.onnx.export(network, (image, ), file, **options)
    session = runtime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
    found = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        assert a.shape == b.shape and float((torch.as_tensor(a) - b).abs().max()) < BOUND
