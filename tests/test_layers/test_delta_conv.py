"""Convolutions with a low-rank addition: thin products against the merged kernel, and against HF PEFT."""
import pytest
import torch
from torch import nn

import e3va
from e3va.dmlora.method import MixLoRAConv2d
from e3va.methods.lora import LoRAConv2d
from tests.conftest import stir

GEOMETRIES = [
    dict(kernel_size=1), dict(kernel_size=3, padding=1, stride=2), dict(kernel_size=(3, 5), padding=(1, 2), bias=False),
    dict(kernel_size=3, padding=2, dilation=2), dict(kernel_size=3, groups=2, padding=1), dict(kernel_size=3, groups=4),
    dict(kernel_size=3, padding=1, padding_mode='reflect'), dict(kernel_size=4, padding='same'),
    dict(kernel_size=3, padding='same', padding_mode='circular', dilation=2)]


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
@pytest.mark.parametrize('make', [
    lambda old: LoRAConv2d(old, 4, 0.5), lambda old: LoRAConv2d(old, 4, 2., bits=2),
    lambda old: MixLoRAConv2d(old, 4, 2, 2, 0.5)], ids=['lora', 'two bits', 'dmlora'])
def test_forward_and_merged(make, geometry):
    """The stock layer at the start (but for few bits), and merged a stock layer that gives the same."""
    old = nn.Conv2d(8, 12, **geometry)
    layer, x = make(old).eval(), torch.randn(2, 8, 9, 10)
    if not any(name.endswith('statistics') for name in layer.state_dict()):
        assert torch.equal(layer(x), old(x))
    stir(layer)
    merged = layer.merged()
    assert type(merged) is nn.Conv2d and set(merged.state_dict()) == set(old.state_dict())
    assert (layer(x) - old(x)).abs().max() > 1e-3
    torch.testing.assert_close(merged(x), layer(x), atol=1e-5, rtol=1e-5)
    assert str(merged) == str(old)


@pytest.mark.parametrize('kind', [
    'timm.layers:Conv2dSame', 'mmcv.cnn.bricks.conv2d_adaptive_padding:Conv2dAdaptivePadding'])
@pytest.mark.parametrize('stride', [1, 2, 3])
def test_layers_that_pad_themselves(kind, stride):
    import importlib
    module, _, name = kind.partition(':')
    old = getattr(importlib.import_module(module), name)(6, 8, 3, stride=stride, dilation=2 if stride == 1 else 1)
    layer, x = LoRAConv2d(old, 2, 1.), torch.randn(2, 6, 11, 14)
    assert torch.equal(layer(x), old(x))
    stir(layer)
    assert type(layer.merged()) is type(old)
    torch.testing.assert_close(layer.merged()(x), layer(x), atol=1e-5, rtol=1e-5)


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, groups=2),
                         nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)).eval()


def test_against_peft(peft, tmp_path):
    """Counts (but where the layer has groups) and outputs, by way of the files of an adapter, both ways."""
    from e3va.delta.peft import export_peft, import_peft
    ours = e3va.tune(plain(), dict(type='LoRA', rank=4, alpha=6, targets=['0', '2', '4']))
    stir(ours)
    export_peft(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(plain(), tmp_path).eval()
    x = torch.randn(2, 3, 17, 16)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    assert (ours(x) - plain()(x)).abs().max() > 0.1
    again = e3va.tune(plain(), dict(type='LoRA', rank=4, alpha=6, targets=['0', '2', '4']))
    import_peft(again, tmp_path)
    assert torch.equal(again(x), ours(x))
    config = peft.LoraConfig(r=4, target_modules=['0', '4'], init_lora_weights=False)
    written = peft.get_peft_model(plain(), config).eval()
    ours = e3va.tune(plain(), dict(type='LoRA', rank=4, alpha=8, targets=['0', '4']))
    assert e3va.report(ours)['trained'] == written.get_nb_trainable_parameters()[0]
    written.save_pretrained(tmp_path / 'written')
    import_peft(ours, tmp_path / 'written')
    torch.testing.assert_close(ours(x), written(x), atol=1e-5, rtol=1e-5)


def test_what_peft_cannot_say(tmp_path):
    from e3va.delta.peft import export_peft
    dilated = e3va.tune(nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2)), dict(type='LoRA', rank=2))
    with pytest.raises(ValueError, match='PEFT has no LoRA of 0, a convolution with dilation'):
        export_peft(dilated, tmp_path)
    with pytest.raises(ValueError, match='rank=3: 2 of Sequential is a convolution of 2 groups, and the rank must be'):
        e3va.tune(plain(), dict(type='LoRA', rank=3, targets=['2']))
