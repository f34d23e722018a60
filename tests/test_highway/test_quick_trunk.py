"""What only a trunk without gradient can do: the fused kernel, fewer bits, compiled blocks."""
import copy
import sys

import pytest
import timm
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope

import e3va
from e3va.layers import Int8Linear
from e3va.registry import MODELS
from tests.conftest import SWIN_ARCH, TRUNKS, VIT_ARCH, alike, build, distance, image, pair, projected
from tests.test_serve.models import base
from tests.test_serve.models import config as model_config


def quick(**options):
    return dict(type='E3VA', rank=2, **options)


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('trunk', [name for name in TRUNKS if name.startswith(('swin_mm', 'vit_sam'))])
def test_fused_attention_is_the_stock_one(trunk, batch):
    """Shifted and padded windows, the masks of several images; against the stock trunk."""
    stock, tuned = pair(trunk, quick(attention='fused'))
    for name, parameter in stock.named_parameters():
        if 'relative_position_bias_table' in name or 'rel_pos' in name:
            torch.nn.init.normal_(parameter)
    tuned.load_state_dict(stock.state_dict(), strict=False)
    stock.eval(), tuned.eval()
    x = image(trunk, batch)
    assert 0 < distance(stock(x), tuned(x)) <= 1e-5


@pytest.mark.parametrize('trunk', ['swin_mmdet', 'swin_timm', 'vit_mmpretrain', 'vit_sam', 'vit_timm'])
def test_half_the_bytes(trunk):
    """The blocks' linear layers in bfloat16 and nothing else, its values those of the file; within its 8 bits."""
    stock, tuned = pair(trunk, quick(trunk_weights='bf16'))
    state = tuned.state_dict()
    matrices = {f'{name}.{leaf}' for name, module in stock.named_modules() if isinstance(module, torch.nn.Linear)
                and ('blocks' in name or 'layers' in name) and 'downsample' not in name
                for leaf, value in module.named_parameters()}
    assert matrices
    for name, value in stock.state_dict().items():
        assert state[name].dtype == (torch.bfloat16 if name in matrices else value.dtype), name
        assert torch.equal(state[name], value.to(state[name].dtype)), name
    assert e3va.report(tuned)['frozen_bytes'] < 0.8 * 4 * e3va.report(tuned)['frozen']
    stock.eval(), tuned.eval()
    x = image(trunk)
    for want, got in zip(stock(x), tuned(x)):
        assert (want - got).abs().max() <= 0.02 * want.abs().max()
    tuned.train()
    projected(tuned(x)).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in tuned.parameters() if parameter.requires_grad)


@pytest.mark.parametrize('trunk', ['swin_mmdet', 'swin_timm', 'vit_mmpretrain', 'vit_sam', 'vit_timm'])
def test_a_quarter_of_the_bytes(trunk, tmp_path):
    """The blocks' matrices in 8 bits and nothing else, each value within half a step of the file's."""
    stock, tuned = pair(trunk, quick(trunk_weights='int8'))
    state, matrices = tuned.state_dict(), 0
    for name, value in stock.state_dict().items():
        module = stock.get_submodule(name.rpartition('.')[0])
        if (isinstance(module, torch.nn.Linear) and name.endswith('weight') and 'downsample' not in name
                and ('blocks' in name or 'layers' in name)):
            step = value.abs().amax(1, keepdim=True) / 127
            assert ((state[name] - value).abs() <= 0.51 * step).all() and not torch.equal(state[name], value), name
            matrices += value.numel()
        else:
            assert torch.equal(state[name], value), name
    exact = e3va.report(build(trunk, quick()))
    report = e3va.report(tuned)
    assert report['frozen'] == exact['frozen']
    assert 3 * matrices - exact['frozen_bytes'] + report['frozen_bytes'] <= 0.2 * matrices     # the scales
    stock.eval(), tuned.eval()
    x = image(trunk)
    for want, got in zip(stock(x), tuned(x)):
        assert (want - got).abs().max() <= 0.03 * want.abs().max()
    torch.save(tuned.state_dict(), tmp_path / 'all.pth')
    again = build(trunk, quick(trunk_weights='int8'), seed=3).eval()
    again.load_state_dict(torch.load(tmp_path / 'all.pth'))
    assert distance(tuned(x), again(x)) == 0


def test_int8_loads_are_checked():
    stock, tuned = pair('swin_mmdet', quick(trunk_weights='int8'))
    state, name = stock.state_dict(), 'stages.0.blocks.0.ffn.layers.1.weight'
    whole = state.pop(name)
    assert name in tuned.load_state_dict(state, strict=False).missing_keys
    with pytest.raises(ValueError, match=f'1 frozen parameters .* random values: {name}'):
        build('swin_mmdet', quick(trunk_weights='int8')).load_state_dict(state, strict=False)
    with pytest.raises(RuntimeError, match=f'size mismatch for {name}'):
        tuned.load_state_dict({**state, name: whole[:, 1:]}, strict=False)


STOCK = dict(                                                           # whose init_weights draws into linear layers
    vit_mmpretrain=('mmpretrain.VisionTransformer', dict(arch=VIT_ARCH, img_size=64)),
    beit_mmpretrain=('mmpretrain.BEiTViT', dict(arch=dict(VIT_ARCH, num_layers=2), img_size=64)),
    vit_mmseg=('mmseg.VisionTransformer', dict(img_size=64, embed_dims=24, num_layers=2, num_heads=2)),
    beit_mmseg=('mmseg.BEiT', dict(img_size=64, embed_dims=24, num_layers=2, num_heads=2)),
    mae_mmseg=('mmseg.MAE', dict(img_size=64, embed_dims=24, num_layers=2, num_heads=2)),
    swin_mmpretrain=('mmpretrain.SwinTransformer', dict(arch=SWIN_ARCH, img_size=64)))


@pytest.mark.parametrize('weights', ['bf16', 'int8'])
@pytest.mark.parametrize('name', STOCK)
def test_stock_initial_values(name, weights, tmp_path):
    """`init_weights` draws what the stock trunk draws, or reads what that reads, and both are rounded; again, too."""
    kind, options = STOCK[name]

    def made(**more):
        for method in 'Fixed', quick(trunk_weights=weights):
            torch.manual_seed(0)
            yield MODELS.build(dict(type='e3va.Tuned', trunk=kind, method=method, **copy.deepcopy(options), **more))

    def same(stock, tuned):
        state = tuned.state_dict()
        for key, value in stock.state_dict().items():
            step = value.abs().amax(-1, keepdim=True) / 127 if value.dim() == 2 else 1e-2 * value.abs()
            assert ((state[key].float() - value).abs() <= 0.52 * step + 1e-7).all(), key

    stock, tuned = made()
    if weights == 'int8':                                               # of bfloat16 numbers others are drawn
        for trunk in (stock, tuned):
            torch.manual_seed(1)
            trunk.init_weights()
        same(stock, tuned)
    torch.save(stock.state_dict(), tmp_path / 'trunk.pth')
    stock, tuned = made(init_cfg=ConfigDict(type='Pretrained', checkpoint=str(tmp_path / 'trunk.pth')))
    tuned.init_weights()
    stock.load_state_dict(torch.load(tmp_path / 'trunk.pth'))
    same(stock, tuned)
    before = {key: value.clone() for key, value in tuned.state_dict().items()}
    tuned._is_init = False
    tuned.init_weights()                                                # a load again
    assert all(torch.equal(value, before[key]) for key, value in tuned.state_dict().items())


@pytest.mark.parametrize('weights', ['bf16', 'int8'])
@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpretrain'])
def test_initial_values_of_a_whole_model(library, weights, tmp_path):
    """mmengine notes what `init_weights` does to each parameter of a detector, a segmenter, a classifier."""
    cfg = model_config(library, base(tmp_path, 'vit_mmpretrain'), quick(trunk_weights=weights), vit=True)
    for init_cfg in (cfg.model.backbone.init_cfg, None):
        cfg.model.backbone.init_cfg = init_cfg
        with DefaultScope.overwrite_default_scope(library):
            model = ROOT.build(cfg.model)
            model.init_weights()
        assert not any(hasattr(module, '_params_init_info') for module in model.modules())
        assert all(module.weight is None for module in model.modules() if isinstance(module, Int8Linear))
    given = torch.load(tmp_path / 'trunk_3.pth')
    model.load_state_dict(given, strict=False)
    assert all(torch.allclose(model.state_dict()[key].float(), value, atol=2e-2) for key, value in given.items())


def test_int8_without_torchao(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchao.quantization', None)
    with pytest.raises(ValueError, match="trunk_weights='int8' needs torchao.*pip install torchao"):
        build('swin_mmdet', quick(trunk_weights='int8'))


def test_compiled_blocks():
    torch._dynamo.reset()
    plain, tuned = (build('vit_timm', quick(trunk_compile=flag), depth=2, out_indices=(1,)).eval()
                    for flag in (False, True))
    tuned.load_state_dict(plain.state_dict())
    assert all(block.attn._compiled_call_impl and block.mlp._compiled_call_impl for block in tuned.blocks)
    x = image('vit_timm')
    assert distance(plain(x), tuned(x)) <= 1e-5


def test_half_linear_follows_the_model_s_type():
    tuned = alike('swin_mmdet', quick(trunk_weights='bf16'))
    assert tuned.double().eval()(image('swin_mmdet').double())[0].dtype == torch.double


def test_a_trunk_of_convolutions():
    model = timm.create_model('convnext_atto', depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), conv_mlp=True)
    with pytest.raises(ValueError, match='blocks of this ConvNeXt have none: leave it at .stock.'):
        e3va.tune(model, quick(trunk_weights='bf16'))
