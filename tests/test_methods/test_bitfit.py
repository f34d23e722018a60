"""BitFit: which biases train, the printed counts, and the gradients of HF PEFT's BEFT, which adds biases to linears."""
import pytest
import timm
import torch

import e3va
from tests.conftest import build, distance, projected

from .counts import SWIN, count


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_trains():
    """All that is called a bias, relative position bias tables too, but nothing behind the last output."""
    tuned = build('swin_mmdet', 'bitfit')
    assert trained(tuned) == {name for name in tuned.tuning.keys if 'bias' in name}
    block = 'stages.0.blocks.0.'
    assert {name for name in trained(tuned) if name.startswith(block)} == {block + name for name in (
        'norm1.bias', 'attn.w_msa.relative_position_bias_table', 'attn.w_msa.qkv.bias', 'attn.w_msa.proj.bias',
        'norm2.bias', 'ffn.layers.0.0.bias', 'ffn.layers.1.bias')}
    assert {'patch_embed.projection.bias', 'stages.0.downsample.norm.bias', 'norm3.bias'} <= trained(tuned)
    assert not any(name.startswith('stages.3') for name in trained(build('swin_mmdet_partial', 'bitfit')))
    assert not any(name.startswith(('layers.3', 'ln1')) for name in trained(build('vit_mmpretrain_maps', 'bitfit')))
    assert 'norm1.weight' in trained(build('swin_mmdet', dict(type='BitFit', train_out_norms=True)))


@pytest.mark.parametrize('size,printed', [('b', 201_656), ('l', 302_484)])
def test_counts_of_e3va_tables(size, printed):
    assert count('BitFit', 'mmdet.SwinTransformer', **SWIN[size]) == printed


def test_count_of_vit_b():
    """0.39 MiB in Pear's table; a timm model's classifier, which trains under every method, is not counted."""
    assert count('BitFit') == 102_912
    report = e3va.report(e3va.tune(timm.create_model('vit_base_patch16_224', num_classes=10), 'BitFit'))
    assert report['trained'] == 102_912 and report['head'] == 7_690


def test_against_peft(peft):
    """BEFT's new biases start at zero: the same outputs, and the gradients of ours."""
    options = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0)
    torch.manual_seed(0)
    ours = e3va.tune(timm.create_model('vit_tiny_patch16_224', **options), 'BitFit')
    torch.manual_seed(0)
    linears = ['qkv', 'proj', 'fc1', 'fc2']
    theirs = peft.get_peft_model(timm.create_model('vit_tiny_patch16_224', **options),
                                 peft.BeftConfig(target_modules=r'blocks\..*\.(qkv|proj|fc1|fc2)'))
    x = torch.randn(2, 3, 32, 32)
    outs = ours(x), theirs(x)
    assert distance(*outs) <= 1e-5
    for out in outs:
        projected(out).backward()
    found = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert len(found) == 2 * len(linears)
    for name, gradient in found.items():
        own = name.removeprefix('base_model.model.').removesuffix('.beft_bias.default')
        assert distance(ours.get_submodule(own).bias.grad, gradient[0]) <= 1e-5
