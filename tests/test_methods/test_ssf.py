"""SSF: scale and shift behind each operation by hand, which operations, on which axis, merged, and what it counts."""
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import e3va
from e3va.cost.saved import saved_bytes
from e3va.methods.ssf import Scaled, merged, scaled
from e3va.surgery import rebind
from tests.conftest import build, distance, image, pair
from tests.test_contract import compiled_alike

from .counts import SWIN, count


def added(model):
    """Names of the modules that have a scale and a shift."""
    names = {name for name in model.state_dict() if name not in model.tuning.keys}
    modules = {name.rpartition('.')[0] for name in names}
    assert names == {f'{module}.{entry}' for module in modules for entry in ('scale', 'shift')}
    return modules


def test_equation_on_a_vit():
    """The whole forward of timm's ViT written out, y = scale * x + shift behind each of its operations."""
    torch.manual_seed(0)
    options = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3)
    model = e3va.tune(timm.create_model('vit_tiny_patch16_224', **options).eval(), 'SSF')
    state = model.state_dict()

    def ssf(name, x):
        return x * state[f'{name}.scale'] + state[f'{name}.shift']

    def linear(name, x):
        return ssf(name, F.linear(x, state[f'{name}.weight'], state[f'{name}.bias']))

    def norm(name, x):
        return ssf(name, F.layer_norm(x, (24,), state[f'{name}.weight'], state[f'{name}.bias'], 1e-6))

    images = torch.randn(2, 3, 32, 32)
    x = F.conv2d(images, state['patch_embed.proj.weight'], state['patch_embed.proj.bias'], stride=8)
    x = ssf('patch_embed.proj', x.flatten(2).transpose(1, 2))
    x = torch.cat([state['cls_token'].expand(2, -1, -1), x], 1) + state['pos_embed']
    for i in range(2):
        heads = linear(f'blocks.{i}.attn.qkv', norm(f'blocks.{i}.norm1', x)).view(2, 17, 3, 2, 12)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attended = ((q @ k.mT / 12 ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(f'blocks.{i}.attn.proj', attended)
        x = x + linear(f'blocks.{i}.mlp.fc2', F.gelu(linear(f'blocks.{i}.mlp.fc1', norm(f'blocks.{i}.norm2', x))))
    want = F.linear(norm('norm', x)[:, 0], state['head.weight'], state['head.bias'])
    torch.testing.assert_close(model(images), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('trunk,block', [
    ('vit_mmpretrain', {'ln1', 'attn.qkv', 'attn.proj', 'ln2', 'ffn.layers.0.0', 'ffn.layers.1'}),
    ('swin_mmdet', {'norm1', 'attn.w_msa.qkv', 'attn.w_msa.proj', 'norm2', 'ffn.layers.0.0', 'ffn.layers.1'}),
    ('swin_timm', {'norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'}),
    ('convnext_mmpretrain', {'depthwise_conv', 'norm', 'pointwise_conv1', 'pointwise_conv2'}),
    ('convnext_timm', {'conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2'})])
def test_placement(trunk, block):
    """The authors' places, in every used block, around the blocks, and nowhere else."""
    tuned = build(trunk, 'ssf')
    blocks = {f'{name}.' for name, module in tuned.named_modules()
              if any(module is other for stage in tuned.tuning.parts.stages(tuned) for other in stage)}
    inside = {name for name in added(tuned) if name.startswith(tuple(blocks))}
    last = {'convnext_timm': 'stages.3'}.get(trunk, 'none')
    assert inside == {prefix + name for prefix in blocks if not prefix.startswith(last) for name in block}
    assert added(tuned) - inside == dict(
        vit_mmpretrain={'patch_embed.projection', 'ln1'},
        swin_mmdet={'patch_embed.projection', 'patch_embed.norm', *(f'stages.{i}.downsample.norm' for i in range(3)),
                    *(f'norm{i}' for i in range(4))},
        swin_timm={'patch_embed.proj', 'patch_embed.norm', *(f'layers.{i}.downsample.norm' for i in (1, 2, 3)),
                   *(f'norm{i}' for i in range(4))},
        convnext_mmpretrain={*(f'downsample_layers.{i}.{j}' for i in range(4) for j in range(2)),
                             *(f'norm{i}' for i in range(4))},
        convnext_timm={'stem.0', 'stem.1', *(f'stages.{i}.downsample.{j}' for i in (1, 2) for j in range(2)), 'norm1',
                       'norm2'})[trunk]


def test_left_out():
    """Norms of q and k, attention pooling, and mmsegmentation's attention, whose linears torch reads itself."""
    options = dict(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=3)
    model = e3va.tune(timm.create_model('vit_tiny_patch16_224', qk_norm=True, global_pool='map', class_token=False,
                                        **options), 'SSF')
    assert added(model) == {'patch_embed.proj', 'norm', *(f'blocks.0.{name}' for name in (
        'norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'))}
    import mmseg.models  # noqa: F401

    from e3va.registry import MODELS
    tuned = MODELS.build(dict(type='e3va.Tuned', trunk='mmseg.VisionTransformer', img_size=(64, 64), embed_dims=24,
                              num_layers=1, num_heads=2, method='SSF', out_indices=0))
    assert added(tuned) == {'patch_embed.projection', *(f'layers.0.{name}' for name in (
        'ln1', 'ln2', 'ffn.layers.0.0', 'ffn.layers.1'))}


@pytest.mark.parametrize('axis,kind', [
    (1, nn.Conv2d), (1, 'mm'), (1, 'timm'), (-1, 'mm_last'), (-1, nn.Linear), (-1, nn.LayerNorm)])
def test_axis(axis, kind):
    """Channels come second in maps (mmpretrain's norm has a keyword), last in tokens; 6 x 6 maps of 6 channels."""
    from mmpretrain.models.utils.norm import LayerNorm2d
    from timm.layers import LayerNorm2d as TimmNorm

    module = {nn.Conv2d: lambda: nn.Conv2d(6, 6, 1), nn.Linear: lambda: nn.Linear(6, 6), 'timm': lambda: TimmNorm(6),
              nn.LayerNorm: lambda: nn.LayerNorm(6)}.get(kind, lambda: LayerNorm2d(6))()
    options = dict(data_format='channel_last') if kind == 'mm_last' else {}
    x = torch.randn(2, 6, 6, 6)
    stock = module(x, **options)
    module.scale, module.shift = (nn.Parameter(torch.randn(6)) for _ in range(2))
    rebind(module, 'forward', scaled), rebind(module, 'merged', merged)
    want = (stock.movedim(axis, -1) * module.scale + module.shift).movedim(-1, axis)
    torch.testing.assert_close(module(x, **options), want)
    again = module.merged()
    assert set(again.state_dict()) == {'weight', 'bias'} and again is module and 'forward' not in module.__dict__
    torch.testing.assert_close(again(x, **options), want)


def test_init():
    """scale ~ N(1, 0.02), shift ~ N(0, 0.02): the tuned trunk starts close to the stock one."""
    arch = dict(embed_dims=192, num_layers=2, num_heads=2, feedforward_channels=384)
    tuned = build('vit_mmpretrain', 'ssf', arch=arch)
    for entry, mean in (('scale', 1), ('shift', 0)):
        values = torch.cat([value for name, value in tuned.state_dict().items() if name.endswith(entry)])
        assert abs(values.mean() - mean) < 2e-3 and abs(values.std() - 0.02) < 1e-3
    stock, tuned = pair('swin_mmdet', 'ssf')
    stock.eval(), tuned.eval()
    assert 0 < distance(stock(image('swin_mmdet')), tuned(image('swin_mmdet'))) < 1


@pytest.mark.parametrize('scale', [1., -0.3, 1e-2])
@pytest.mark.parametrize('shape', [(4,), (4, 1, 1)])
def test_gradients(scale, shape):
    """By hand in double precision, from the x that is not kept: sum(g x) for scale, sum(g) for shift, g scale for x."""
    x, gradient = torch.randn(5, 4, 6, 4), torch.randn(5, 4, 6, 4)
    entries = [torch.full(shape, scale), torch.randn(shape)]
    given = [tensor.clone().requires_grad_() for tensor in (x, *entries)]
    y = Scaled.apply(*given)
    torch.testing.assert_close(y, x * entries[0] + entries[1])
    y.backward(gradient)
    axes = (0, 2, 3) if len(shape) == 3 else (0, 1, 2)
    want = [gradient * scale, *((gradient.double() * factor).sum(axes).view(shape).float() for factor in (x, 1))]
    for tensor, each in zip(given, want, strict=True):
        torch.testing.assert_close(tensor.grad, each, rtol=1e-3, atol=1e-3)


def test_scale_of_zero():
    """There x cannot be had back from y: the gradient is what rounding leaves, and finite."""
    x, scale, shift = torch.randn(9, 4), torch.zeros(4, requires_grad=True), torch.randn(4, requires_grad=True)
    Scaled.apply(x, scale, shift).sum().backward()
    assert scale.grad.isfinite().all()


def test_what_is_kept():
    """In a block, beside what any backward through it keeps: what proj and fc2 give out, and not qkv, fc1, norms."""
    options = dict(img_size=64, patch_size=8, embed_dim=24, num_heads=2, num_classes=0)

    def kept(method, depth):
        model = e3va.tune(timm.create_model('vit_tiny_patch16_224', depth=depth, **options), method)
        return saved_bytes(lambda: model(torch.zeros(2, 3, 64, 64)).sum(), model)

    more = [kept('SSF', depth) - kept('BitFit', depth) for depth in (1, 2)]
    assert 2 <= (more[1] - more[0]) / (2 * 65 * 24 * 4) < 2.2           # in tensors (B, L, C)


def test_compile():
    """torch.compile takes the function of its own in one graph, with the same outputs and gradients."""
    torch._dynamo.reset()
    tuned = build('vit_timm', 'ssf', depth=1, out_indices=(0,))
    assert torch._dynamo.explain(tuned.eval())(image('vit_timm')).graph_break_count == 0
    compiled_alike(tuned, image('vit_timm'), 'aot_eager')


def test_half_precision_keeps_small_changes():
    """A scale of 1.003 is 1 in bfloat16; the product is made in the scale's type and the output keeps its own."""
    tuned = build('vit_mmpretrain', 'ssf')
    layer = tuned.layers[0].attn.proj
    nn.init.constant_(layer.scale, 1.003)
    with torch.autocast('cpu', torch.bfloat16):
        out, stock = layer(x := torch.randn(500, 24)), nn.Linear.forward(layer, x)
    assert out.dtype == torch.bfloat16
    assert (out.float() - (stock.float() * layer.scale + layer.shift)).abs().max() < 0.01
    assert not torch.equal(out, (stock + layer.shift.bfloat16()))


def test_without_bias():
    """A layer without bias trains, but cannot take the shift: a clear refusal to merge."""
    tuned = build('swin_mmdet', 'ssf', qkv_bias=False)
    assert 'stages.0.blocks.0.attn.w_msa.qkv' in added(tuned)
    with pytest.raises(ValueError, match='a layer without bias cannot take'):
        e3va.merge(tuned)


def test_counts():
    """ViT-B 205,824 (0.785 MiB; Pear prints 0.78), Swin-B by the sum over its operations."""
    assert count('SSF') == 205_824
    blocks = sum(depth * (1 + 3 + 1 + 1 + 4 + 1) * width for depth, width in zip((2, 2, 18, 2), (128, 256, 512, 1024)))
    around = 2 * 128 + 4 * (128 + 256 + 512) + (128 + 256 + 512 + 1024)
    assert count('SSF', 'mmdet.SwinTransformer', **SWIN['b']) == 2 * (blocks + around)
