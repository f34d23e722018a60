"""Trunks that lack the linears of some roles: what the methods on linears say, and what goes there all the same."""
import pytest
import timm
import torch
from mmengine.config import Config

import e3va
from e3va import methods
from e3va.registry import METHODS, MODELS
from tests.conftest import METHODS as CONTRACT
from tests.conftest import ROOT, projected

ON_LINEARS = ['Adapter', 'AdapterPfeiffer', 'LoRand', 'Compacter', 'RepAdapter', 'FacT', 'FourierFT', 'MoRA', 'LoRA']


def convolutional(method):
    """A ConvNeXt whose MLPs are convolutions of 1x1."""
    options = dict(conv_mlp=True, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=0)
    return e3va.tune(timm.create_model('convnext_tiny', **options), method)


def torch_attention(method):
    """mmsegmentation's ViT, whose attention is torch's own."""
    import mmseg.models  # noqa: F401
    return MODELS.build(dict(type='e3va.Tuned', trunk='mmseg.VisionTransformer', img_size=(32, 32), embed_dims=24,
                             num_layers=2, num_heads=2, mlp_ratio=2, method=method, out_indices=1))


@pytest.mark.parametrize('method', [method for method in ON_LINEARS if method != 'LoRA'])
def test_convolutions_for_linears(method):
    with pytest.raises(ValueError, match='its roles are: none, .*convolutions of 1x1. Take .* AdaptFormer, Mona, SSF'):
        convolutional(method)


@pytest.mark.parametrize('method', [dict(type='AdaptFormer', rank=2), dict(type='Mona', rank=2), 'SSF', 'BitFit',
                                    'NormTuning'])
def test_convolutions_need_no_linears(method):
    """The methods that the refusal names."""
    tuned = convolutional(method)
    projected(tuned(torch.randn(1, 3, 64, 64))).backward()
    assert all(parameter.grad is not None for parameter in tuned.parameters() if parameter.requires_grad)


@pytest.mark.parametrize('method', [name for name in ON_LINEARS if name not in ('AdapterPfeiffer', 'LoRA')])
def test_attention_of_torch(method):
    with pytest.raises(ValueError, match='no linear layer of the role .*; its roles are: fc1, fc2'):
        torch_attention(method)


@pytest.mark.parametrize('method', [
    'AdapterPfeiffer', dict(type='Adapter', roles='fc2'), dict(type='Compacter', rank=4, roles='fc2'),
    dict(type='RepAdapter', branches='mlp'), dict(type='FacT', roles=('fc1', 'fc2')),
    dict(type='FourierFT', n=9, roles=('fc1', 'fc2')), dict(type='MoRA', rank=2, roles=('fc1', 'fc2'))])
def test_mlp_beside_attention_of_torch(method):
    tuned = torch_attention(method)
    projected(tuned(torch.randn(1, 3, 32, 32))).backward()
    trained = {name: parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for parameter in trained.values())
    assert {name.split('.')[0] for name in trained} <= {'layers', 'fact', 'compacter'} and trained
    assert all('.ffn.' in name for name in trained if name.startswith('layers'))


def test_every_method_is_under_the_contract():
    """The files of e3va/methods are found by themselves; tests/conftest.py says with which options they are tested."""
    files = {path.stem for path in (ROOT / 'e3va/methods').glob('*.py') if 'register_module' in path.read_text()}
    METHODS.import_from_location()
    kinds = {kind for kind in METHODS.module_dict.values() if kind.__module__.startswith('e3va.')}
    here = {kind for kind in kinds if kind.__module__.startswith('e3va.methods.')}
    assert files == {kind.__module__.rpartition('.')[2] for kind in here}
    assert all(getattr(methods, kind.__name__) is kind for kind in here)
    left = {kind.__name__ for kind in kinds} - {options['type'] for options in CONTRACT.values()}
    assert not left, f'METHODS in tests/conftest.py has no line for {sorted(left)}: add e.g. name=dict(type=...)'


def test_a_method_of_the_folder_has_its_config():
    """`--method` finds it by a file of configs/methods."""
    named = {Config.fromfile(path).method.type for path in (ROOT / 'configs/methods').glob('*.py')}
    left = {kind.__name__ for kind in METHODS.module_dict.values() if kind.__module__.startswith('e3va.')} - named
    assert not left, f"configs/methods has no file for {sorted(left)}: add one with method = dict(type='NAME')"
