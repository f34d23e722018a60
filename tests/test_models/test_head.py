"""Bi-head: a quantised classifier in stock heads of mmpretrain and in timm models."""
import pytest
import timm
import torch
from mmengine.registry import DefaultScope
from safetensors.torch import load_file
from torch import nn

import e3va
from e3va.delta.scheme import whole_checkpoint
from e3va.layers import QuantisedLinear
from e3va.models.head import quantise_head
from e3va.registry import MODELS
from tests.conftest import VIT_ARCH, distance, stir
from tests.test_layers.test_quantised import FEW, plain

TRUNK = dict(arch=VIT_ARCH, img_size=32, patch_size=8)
METHOD = dict(type='LoRA', rank=6, bits=1)


def classifier(seed=0, **head):
    """mmpretrain's ViT classifier of 5 classes, its weights initialised as by a runner."""
    import mmpretrain.models  # noqa: F401
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='e3va.Tuned', trunk='VisionTransformer', method=METHOD, **TRUNK),
            head=dict(type='e3va.QuantisedHead', head='VisionTransformerClsHead', in_channels=24, num_classes=5,
                      **head)))
    model.init_weights()
    return model


@FEW
def test_equation(bits):
    """f q(W)^T without a bias, by the stock head otherwise; `init_weights`, which zeros a stock one, leaves W drawn."""
    head = classifier(bits=bits).head
    assert type(head).__name__ == 'VisionTransformerClsHead'
    assert set(head.state_dict()) == {'layers.head.weight', 'layers.head.weight_statistics'}
    layer, x = head.layers.head, torch.randn(2, 24)
    assert 0.15 < layer.weight.abs().max() <= 24 ** -0.5
    torch.testing.assert_close(head((x,)), x @ plain(layer.weight, bits).T)
    torch.testing.assert_close(layer.merged()(x), head((x,)))
    assert type(layer.merged()) is nn.Linear


@pytest.mark.parametrize('head', ['LinearClsHead', 'VisionTransformerClsHead'])
def test_it_learns(head):
    torch.manual_seed(0)
    head = MODELS.build(dict(type='e3va.QuantisedHead', head=f'mmpretrain.{head}', in_channels=24, num_classes=3))
    head.init_weights()
    x = torch.randn(30, 24)
    y = x[:, :3].argmax(1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        losses.append(nn.functional.cross_entropy(head((x,)), y))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_delta(tmp_path):
    """The head is in the file in its bits, not in `delta_bytes`; it loads to the same outputs, also into stock models.
    """
    model, base, path = classifier(), tmp_path / 'base.pth', tmp_path / 'delta.safetensors'
    stir(model)
    torch.save(dict(state_dict=model.state_dict()), base)
    e3va.save_delta(model, path, base=str(base))
    tensors = load_file(path)
    assert tensors['head.layers.head.weight'].numel() == 5 * 24 // 8 + 8
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    assert total == e3va.report(model)['delta_bytes'] + 5 * 24 // 8 + 8
    x = torch.randn(2, 3, 32, 32)
    want = model.eval()(x)
    again = classifier(seed=3)
    e3va.load_delta(again, path, base=str(base))
    assert torch.equal(again.eval()(x), want)
    whole = classifier(seed=4).eval()
    whole.load_state_dict(whole_checkpoint(path)['state_dict'])
    assert torch.equal(whole(x), want)
    merged = e3va.merge(model)
    assert type(merged.head.layers.head) is nn.Linear and distance(merged(x), want) <= 1e-5
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        stock = MODELS.build(dict(
            type='mmpretrain.ImageClassifier', backbone=dict(type='mmpretrain.VisionTransformer', **TRUNK),
            head=dict(type='VisionTransformerClsHead', in_channels=24, num_classes=5)))
    stock.load_state_dict(whole_checkpoint(path, merged=True)['state_dict'])
    stock.eval()
    assert distance(stock(x), want) <= 1e-5
    stock.load_state_dict(merged.state_dict())


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'convnext_tiny'])
def test_timm(name, tmp_path):
    """A whole timm classifier: quantised before it is tuned, trained with it, in its delta, and merged."""
    small = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2) if 'vit' in name else dict(
        depths=(1, 1, 1, 1), dims=(8, 8, 16, 24))

    def build():
        torch.manual_seed(0)
        return quantise_head(timm.create_model(name, num_classes=10, **small))

    method = METHOD if 'vit' in name else dict(METHOD, roles=('fc1', 'fc2'))
    tuned = e3va.tune(build(), method)
    head = next(module for module in tuned.modules() if isinstance(module, QuantisedLinear))
    assert head.weight.requires_grad
    stir(tuned)
    x = torch.randn(2, 3, 32, 32)
    want = tuned.eval()(x)
    assert e3va.report(tuned)['head'] >= head.weight.numel() == 240
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    again = e3va.load_delta(e3va.tune(build(), method), tmp_path / 'delta.safetensors')
    assert torch.equal(again.eval()(x), want)
    merged = e3va.merge(tuned)
    assert [type(module) for module in merged.modules()] == [
        type(module) for module in timm.create_model(name, num_classes=10, **small).modules()]
    assert distance(merged(x), want) <= 1e-5


def test_refusals():
    with pytest.raises(ValueError, match='Sequential has no linear layer inside'):
        quantise_head(nn.Sequential(nn.Conv2d(3, 3, 1)))
    for bits in (32, 3, '1'):
        with pytest.raises(ValueError, match='bits must be'):
            quantise_head(nn.Sequential(nn.Linear(4, 4)), bits)
