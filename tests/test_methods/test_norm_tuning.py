"""Norm-Tuning: which norms train, the printed counts, and HF PEFT's LN tuning."""
import pytest
import timm
import torch

import e3va
from tests.conftest import build, distance, projected, stir

from .counts import SWIN, count
from .test_bitfit import trained


def test_what_trains():
    """On Swin all that is called a norm, on others the same layers by other names; nothing behind the last output."""
    tuned = build('swin_mmdet', 'norm_tuning')
    assert trained(tuned) == {name for name in tuned.tuning.keys if 'norm' in name}
    assert {'patch_embed.norm.weight', 'stages.2.downsample.norm.bias', 'norm0.weight'} <= trained(tuned)
    assert trained(build('vit_mmpretrain_maps', 'norm_tuning')) == {
        f'layers.{i}.{norm}.{entry}' for i in range(3) for norm in ('ln1', 'ln2') for entry in ('weight', 'bias')}
    grn = [name for name in trained(build('convnext_timm', 'norm_tuning')) if 'grn' in name]
    assert not grn
    assert {'downsample_layers.0.1.weight', 'downsample_layers.3.0.bias', 'stages.2.1.norm.weight', 'norm3.bias'} <= (
        trained(build('convnext_mmpretrain', 'norm_tuning')))


@pytest.mark.parametrize('size,printed', [('b', 59_392), ('l', 89_088)])
def test_counts_of_e3va_tables(size, printed):
    assert count('NormTuning', 'mmdet.SwinTransformer', **SWIN[size]) == printed


def test_norms_of_other_kinds():
    """timm's RmsNorm and SimpleNorm, which have no bias, and norms of q and k."""
    options = dict(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=0, qk_norm=True)
    model = timm.create_model('vit_tiny_patch16_224', norm_layer='rmsnorm', **options)
    assert trained(e3va.tune(model, 'NormTuning')) == {
        *(f'blocks.0.{name}.weight' for name in ('norm1', 'attn.q_norm', 'attn.k_norm', 'norm2')), 'norm.weight'}
    model = timm.create_model('convnext_zepto_rms', depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=0)
    assert len(trained(e3va.tune(model, 'NormTuning'))) == 1 + 3 + 4 + 1        # stem, merges, blocks, head


def test_against_peft(peft):
    """LNTuning of the same norms: outputs away from the start, gradients and count."""
    options = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0)
    torch.manual_seed(0)
    ours = e3va.tune(timm.create_model('vit_tiny_patch16_224', **options), 'NormTuning')
    torch.manual_seed(0)
    norms = ['blocks.0.norm1', 'blocks.0.norm2', 'blocks.1.norm1', 'blocks.1.norm2', 'norm']
    theirs = peft.get_peft_model(timm.create_model('vit_tiny_patch16_224', **options),
                                 peft.LNTuningConfig(target_modules=r'blocks\.\d+\.norm[12]|norm'))
    stir(ours)
    layers = {name: theirs.base_model.model.get_submodule(name).ln_tuning_layers['default'] for name in norms}
    for name, layer in layers.items():
        layer.load_state_dict(ours.get_submodule(name).state_dict())
    assert e3va.report(ours)['trained'] == theirs.get_nb_trainable_parameters()[0]
    x = torch.randn(2, 3, 32, 32)
    outs = ours(x), theirs(x)
    assert distance(*outs) <= 1e-5
    for out in outs:
        projected(out).backward()
    for name, layer in layers.items():
        assert distance(ours.get_submodule(name).weight.grad, layer.weight.grad) <= 1e-5
        assert distance(ours.get_submodule(name).bias.grad, layer.bias.grad) <= 1e-5
