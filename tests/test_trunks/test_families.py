"""Every family of trunks by its record: the stock outputs, block by block, at the start of each method, as maps.

A new family is one line of CASES: the constructor of a small stock trunk and the size of its images.
"""
import copy
import functools

import pytest
import timm
import torch
from timm.models import metaformer, mvitv2, register_model

import e3va
from e3va.registry import MODELS
from e3va.trunks import FAMILIES, family_of, used
from e3va.trunks.walk import by_blocks, through_block
from tests.conftest import distance, projected, stir, tensors

SMALL = dict(small={}, small_cls=dict(use_cls_token=True), small_plain=dict(rel_pos_type=None, mode='max'))
mvitv2.model_cfgs.update({name: mvitv2.MultiScaleVitCfg(depths=(1, 2, 1, 1), embed_dim=16, **options)
                          for name, options in SMALL.items()})

ROPE = dict(embed_dim=48, depth=2, num_heads=2, img_size=48, patch_size=16)
PYRAMID = dict(depths=(1, 1, 2, 1), embed_dim=16, num_heads=(1, 2, 2, 4))
WIDTHS = dict(depths=(1, 1, 2, 1), embed_dims=(16, 16, 32, 32), num_heads=(1, 2, 2, 4))
HIERA = dict(stages=(1, 1, 2, 1), embed_dim=16, img_size=(64, 64), drop_path_rate=0.3)
HIERA_DET = dict(stages=(1, 1, 2, 1), embed_dim=16, drop_path_rate=0.3)
MAXVIT = dict(
    depths=(1, 1, 2, 1), embed_dim=(16, 16, 32, 32), stem_width=(8, 16), img_size=64, transformer_dim_head=8)
DIMS = dict(depths=(1, 1, 2, 1), dims=(16, 16, 32, 32))
STAGES = dict(embed_dims=8, num_layers=(1, 1, 2, 1), num_heads=(1, 2, 2, 4))
TOKENS = dict(embed_dims=48, num_layers=2, num_heads=2, feedforward_channels=96)
PLAIN = dict(img_size=(48, 48), patch_size=16, embed_dims=48, num_layers=2, num_heads=2, mlp_ratio=2)
SHIFTED = dict(embed_dims=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4])
MERGED = dict(embed_dims=64, depths=[1, 1, 7], num_heads=2)
POOLED = dict(embed_dims=16, num_layers=5, num_heads=1, downscale_indices=[1, 2, 4])
CHANNELS = dict(depths=[1, 1, 2, 1], channels=[16, 16, 32, 32])


@register_model
def metaformer_small(pretrained=False, plain=False, **options):
    """timm's own fix the depths and widths; its `create_model` drops options that are None."""
    options.update(dict(downsample_norm=None, res_scale_init_values=None) if plain else {})
    return metaformer._create_metaformer(
        'caformer_s18', pretrained, depths=(1, 1, 2, 1), dims=(16, 24, 32, 64), **options)


# name: (family, timm's name or OpenMMLab's type, options, size of the images)
CASES = dict(
    dinov3=('eva', 'vit_small_patch16_dinov3', ROPE, (48, 48)),                 # no biases in qkv, register tokens
    eva02=('eva', 'eva02_tiny_patch14_224', dict(ROPE, patch_size=12), (48, 48)),   # SwiGLU with an inner norm
    pe=('eva', 'vit_pe_core_tiny_patch16_384', ROPE, (48, 48)),                 # norm in front, attention pooling
    rope_mixed=('eva', 'vit_small_patch16_rope_mixed_224', ROPE, (48, 48)),     # a table for each block
    eva_giant=('eva', 'eva_giant_patch14_224', dict(ROPE, patch_size=12), (48, 48)),    # norms behind the branches
    beit=('beit', 'beit_base_patch16_224', dict(ROPE, drop_path_rate=0.3), (48, 48)),   # gammas, a table a block
    beit_shared=('beit', 'beitv2_base_patch16_224', dict(                       # one table for all, SwiGLU with a norm
        ROPE, use_rel_pos_bias=False, use_shared_rel_pos_bias=True, swiglu_mlp=True, scale_mlp=True), (48, 48)),
    beit_plain=('beit', 'beit_base_patch16_224', dict(                          # no biases, no gammas, any grid
        ROPE, img_size=(48, 32), use_rel_pos_bias=False, use_abs_pos_emb=True, init_values=None, qkv_bias=False,
        global_pool='token'), (48, 32)),
    swinv2=('swinv2_timm', 'swinv2_tiny_window8_256', dict(PYRAMID, img_size=64, window_size=4), (64, 64)),
    swinv2_odd=('swinv2_timm', 'swinv2_base_window12to16_192to256', dict(       # windows of another size in training
        PYRAMID, img_size=64, window_size=3, dynamic_img_size=True, pretrained_window_sizes=(2, 2, 2, 1)), (68, 76)),
    samvit=('vit_sam_timm', 'samvit_base_patch16', dict(                        # windows that pad, of 4 x 5 patches
        ROPE, img_size=64, window_size=3, global_attn_indexes=(1,), neck_chans=16, drop_path_rate=0.3), (64, 80)),
    samvit_rope=('vit_sam_timm', 'samvit_base_patch16', dict(                   # no neck, layer scale
        ROPE, use_rel_pos=False, use_rope=True, window_size=2, global_attn_indexes=(1,), neck_chans=0, init_values=0.5,
        ref_feat_shape=((3, 3), (2, 2))), (48, 48)),
    pvt_v2=('pvt_v2', 'pvt_v2_b0', dict(WIDTHS, drop_path_rate=0.3), (61, 90)),         # keys pooled by convolutions
    pvt_v2_li=('pvt_v2', 'pvt_v2_b2_li', WIDTHS, (64, 64)),                     # by averages
    tiny_vit=('tiny_vit', 'tiny_vit_5m_224', dict(WIDTHS, window_sizes=(4, 4, 3, 2), drop_path_rate=0.3), (61, 90)),
    tiny_vit_whole=('tiny_vit', 'tiny_vit_21m_512', dict(                       # windows as large as the maps
        WIDTHS, window_sizes=(16, 8, 4, 2), drop_path_rate=0.), (64, 64)),
    davit=('davit', 'davit_tiny', dict(WIDTHS, window_size=3, drop_path_rate=0.3), (61, 90)),
    davit_florence=('davit', 'davit_base_fl', dict(                             # another channel attention, a last norm
        WIDTHS, window_size=4, cpe_act=True, head_norm_first=True), (64, 64)),
    convnext=('convnext', 'convnext_tiny.dinov3_lvd1689m', dict(DIMS, drop_path_rate=0.3), (64, 96)),
    convnext_norm_first=('convnext', 'convnext_tiny_hnf', dict(DIMS, conv_mlp=True), (64, 64)),     # 1x1 convolutions
    convnextv2=('convnext', 'convnextv2_atto', dict(DIMS, conv_mlp=False, drop_path_rate=0.3), (64, 96)),   # linears
    convnextv2_conv=('convnext', 'convnextv2_atto', dict(DIMS, conv_mlp=True), (64, 64)),
    convnext_rms=('convnext', 'convnext_zepto_rms_ols', DIMS, (64, 64)),        # a stem of two, norms without biases
    mit=('pvt_mm', 'mmseg.MixVisionTransformer', dict(STAGES, drop_path_rate=0.3), (61, 90)),
    mit_partial=('pvt_mm', 'mmseg.MixVisionTransformer', dict(STAGES, out_indices=(0, 2), qkv_bias=False), (64, 64)),
    pvt=('pvt_mm', 'mmdet.PyramidVisionTransformer', dict(STAGES, pretrain_img_size=64), (64, 96)),     # positions
    pvt_norms=('pvt_mm', 'mmdet.PyramidVisionTransformer', dict(
        STAGES, pretrain_img_size=64, norm_after_stage=True, use_conv_ffn=True), (64, 64)),
    pvt_v2_mm=('pvt_mm', 'mmdet.PyramidVisionTransformerV2', dict(STAGES, drop_path_rate=0.3), (61, 90)),
    beit_mmpretrain=('beit_mm', 'mmpretrain.BEiTViT', dict(                     # a DropPath in the MLP, a table a block
        arch=TOKENS, img_size=48, out_type='featmap', out_indices=[0, 1], drop_path_rate=0.3), (48, 48)),
    beit_mmpretrain_shared=('beit_mm', 'mmpretrain.BEiTViT', dict(              # one table for all, no gammas
        arch=TOKENS, img_size=(48, 32), use_rel_pos_bias=False, use_shared_rel_pos_bias=True, bias=True,
        layer_scale_init_value=0., final_norm=True, out_type='cls_token'), (48, 32)),
    beit_mmpretrain_plain=('beit_mm', 'mmpretrain.BEiTViT', dict(               # positions, images of another size
        arch=TOKENS, img_size=48, use_rel_pos_bias=False, use_abs_pos_emb=True, with_cls_token=False), (64, 48)),
    beit_mmseg=('beit_mm', 'mmseg.BEiT', dict(
        PLAIN, out_indices=(0, 1), final_norm=True, drop_path_rate=0.3), (48, 48)),
    mae_mmseg=('beit_mm', 'mmseg.MAE', dict(PLAIN, img_size=(48, 32), init_values=1.), (48, 32)),
    eva02_mmpretrain=('eva02_mm', 'mmpretrain.ViTEVA02', dict(                  # inner norms
        arch=TOKENS, img_size=48, sub_ln=True, out_type='featmap', out_indices=[0, 1], drop_path_rate=0.3), (48, 64)),
    eva02_mmpretrain_mean=('eva02_mm', 'mmpretrain.ViTEVA02', dict(
        arch=TOKENS, img_size=48, with_cls_token=False, out_type='avg_featmap', final_norm=False), (48, 48)),
    vit_mmseg=('vit_mm', 'mmseg.VisionTransformer', dict(                       # torch's own attention
        PLAIN, out_indices=(0, 1), output_cls_token=True, final_norm=True, drop_path_rate=0.3), (48, 64)),
    vit_mmseg_plain=('vit_mm', 'mmseg.VisionTransformer', dict(PLAIN, with_cls_token=False, qkv_bias=False), (48, 48)),
    swinv2_mmpretrain=('swinv2_mm', 'mmpretrain.SwinTransformerV2', dict(       # windows that pad, from other windows
        arch=dict(SHIFTED, extra_norm_every_n_blocks=0), img_size=64, window_size=4, pad_small_map=True,
        pretrained_window_sizes=[3, 3, 2, 2], out_indices=(0, 1, 2, 3), drop_path_rate=0.3), (67, 90)),
    swinv2_giant=('swinv2_mm', 'mmpretrain.SwinTransformerV2', dict(            # norms on the stream
        arch=dict(SHIFTED, extra_norm_every_n_blocks=2), img_size=64, window_size=[4, 4, 4, 2],
        use_abs_pos_embed=True), (64, 64)),
    davit_mmpretrain=('davit_mm', 'mmpretrain.DaViT', dict(
        arch=SHIFTED, window_size=3, pad_small_map=True, out_indices=(0, 1, 2, 3), drop_path_rate=0.3), (64, 96)),
    davit_mmpretrain_partial=('davit_mm', 'mmpretrain.DaViT', dict(
        arch=SHIFTED, window_size=4, pad_small_map=True, out_indices=(1, 2), qkv_bias=False), (64, 64)),
    mvit_mmpretrain=('mvit_mm', 'mmpretrain.MViT', dict(                        # norms on the stream
        arch=POOLED, img_size=64, out_scales=[0, 1, 3], drop_path_rate=0.3), (64, 96)),
    mvit_mmpretrain_partial=('mvit_mm', 'mmpretrain.MViT', dict(
        arch=POOLED, img_size=64, out_scales=[2], use_abs_pos_embed=True, residual_pooling=False), (61, 90)),
    hivit=('hivit', 'mmpretrain.HiViT', dict(
        arch=MERGED, img_size=64, out_indices=[6], drop_path_rate=0.3, layer_scale_init_value=0.5), (64, 96)),
    hivit_rpe=('hivit', 'mmpretrain.HiViT', dict(                               # biases of positions, one merge
        arch=dict(MERGED, depths=[1, 4]), img_size=64, inner_patches=2, out_indices=[3], rpe=True, ape=False),
        (64, 64)),
    convnextv2_mmpretrain=('convnext', 'mmpretrain.ConvNeXt', dict(
        arch=CHANNELS, use_grn=True, layer_scale_init_value=0., out_indices=(0, 1, 2, 3), gap_before_final_norm=False,
        drop_path_rate=0.3), (67, 90)),
    convnextv2_mmpretrain_conv=('convnext', 'mmpretrain.ConvNeXt', dict(        # 1x1 convolutions, one vector an image
        arch=CHANNELS, use_grn=True, layer_scale_init_value=0., linear_pw_conv=False), (64, 64)),
    hiera=('hiera', 'hiera_tiny_224', dict(HIERA, img_size=(64, 96)), (64, 96)),
    hiera_abswin=('hiera', 'hiera_small_abswin_256', dict(HIERA, init_values=0.5), (64, 64)),   # layer scale, tables
    hiera_concat=('hiera', 'hiera_tiny_224', dict(                              # widths by pooling twice
        HIERA, use_expand_proj=False, q_pool=3, mask_unit_attn=(True, False, False, False)), (64, 64)),
    hieradet=('hieradet', 'sam2_hiera_tiny', dict(                              # windows that pad, and pool
        HIERA_DET, window_spec=(4, 2, 4, 2), global_att_blocks=(3,)), (64, 96)),
    hieradet_whole=('hieradet', 'hieradet_small', dict(                         # patches that do not overlap
        HIERA_DET, window_spec=(4, 2, 4, 2), global_att_blocks=(0, 3), patch_size=(4, 4), init_values=0.5), (64, 64)),
    mvitv2=('mvitv2', 'mvitv2_tiny', dict(cfg_variant='small', img_size=64, drop_path_rate=0.3), (64, 64)),
    mvitv2_cls=('mvitv2', 'mvitv2_small_cls', dict(cfg_variant='small_cls', img_size=64), (64, 64)),
    mvitv2_plain=('mvitv2', 'mvitv2_tiny', dict(cfg_variant='small_plain'), (61, 90)),      # no tables of positions
    metaformer=('metaformer', 'metaformer_small', dict(                         # CAFormer
        token_mixers=[metaformer.SepConv] * 2 + [metaformer.Attention] * 2, drop_path_rate=0.3,
        norm_layers=[metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2), (64, 96)),
    metaformer_pool=('metaformer', 'metaformer_small', dict(                    # PoolFormer: layer scale
        norm_layers=metaformer.GroupNorm1, plain=True, layer_scale_init_values=0.5, mlp_bias=True, use_mlp_head=False,
        drop_path_rate=0.3), (64, 64)),
    metaformer_v2=('metaformer', 'metaformer_small', dict(norm_layers=metaformer.GroupNorm1NoBias), (64, 64)),
    maxvit=('maxxvit', 'maxvit_rmlp_pico_rw_256', dict(MAXVIT, drop_path_rate=0.3), (64, 64)),
    maxvit_tf=('maxxvit', 'maxvit_tiny_tf_224', dict(MAXVIT, img_size=(64, 128)), (64, 128)),
    maxvit_parallel=('maxxvit', 'maxvit_tiny_pm_256', MAXVIT, (64, 64)),        # attention in windows and grid at once
    maxxvit=('maxxvit', 'maxxvit_rmlp_nano_rw_256', dict(MAXVIT, transformer_use_nchw_attn=True), (64, 64)),
    maxxvitv2=('maxxvit', 'maxxvitv2_nano_rw_256', dict(MAXVIT, head_hidden_size=16), (64, 64)),    # grids alone
    coatnet=('maxxvit', 'coatnet_rmlp_nano_rw_224', dict(MAXVIT, depths=(2, 1, 2, 1), drop_path_rate=0.3), (64, 64)),
)
METHODS = dict(
    E3VA=dict(rank=2), LoRA=dict(rank=2), E3VAMix=dict(rank=2, backward=0.5), BitFit={}, SSF={}, Adapter=dict(rank=2),
    AdaptFormer=dict(rank=2),
    Mona=dict(rank=4), RepAdapter=dict(rank=2), LoRand=dict(rank=2), Compacter=dict(rank=4, n=2),
    Partial=dict(blocks=1), NormTuning={}, VPT=dict(tokens=2), FacT=dict(rank=2), FourierFT=dict(n=20),
    MoRA=dict(rank=2), GPS=dict(criterion='magnitude'), DMLoRA=dict(rank=2, branches=2),
    AdaMix=dict(rank=2, branches=2), E2VPT=dict(tokens=2, key_values=2, segments=2), NOAH=dict(sizes=(1, 2)),
    LST=dict(reduction=4), SPT=dict(budget=1000, rank=2, criterion='random'))
BRANCHED = ('DMLoRA', 'AdaMix')                                         # a step trains some of what trains


def turns(items, always):
    """(case, item): the cases of a family take the items in turn, so that it meets each; and those of `always`."""
    alike = {case: [other for other in CASES if CASES[other][0] == CASES[case][0]] for case in CASES}
    return [(case, item) for case in CASES for i, item in enumerate(items)
            if item in always or i % len(alike[case]) == alike[case].index(case)]


def of_timm(case):
    return timm.is_model(CASES[case][1].partition('.')[0])


def make(case, seed=0):
    """A small stock trunk; layers that start at zero are moved away from it, so that all of it counts."""
    _, kind, options, _ = CASES[case]
    torch.manual_seed(seed)
    trunk = (timm.create_model(kind, num_classes=3, **options) if of_timm(case) else
             MODELS.build(dict(type=kind, **options)))
    with torch.no_grad():
        for parameter in trunk.parameters():
            if parameter.dim() and not parameter.any():
                parameter.normal_(0, 0.02)
    trunk.eval()
    return trunk


@functools.lru_cache(1)
def stock_outputs(case):
    """Of the stock trunk at `image(case)`; the tests of a case come one after another."""
    with torch.no_grad():
        return make(case)(image(case))


def image(case, batch=2):
    return torch.randn(batch, 3, *CASES[case][3], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('case', CASES)
def test_the_family_is_known(case):
    assert family_of(make(case)) == CASES[case][0]


@pytest.mark.parametrize('case', CASES)
def test_block_by_block(case):
    """The stock forward read branch by branch gives the stock outputs, bit for bit."""
    trunk = make(case)
    parts = FAMILIES[family_of(trunk)]
    stock = getattr(trunk, parts.ENTRY(trunk))
    trunk.tuning = type('Tuning', (), dict(parts=parts))
    for training, batch in ((False, 1), (False, 2), (True, 2)):         # in training DropPath draws the same
        trunk.train(training)
        torch.manual_seed(1)
        want = stock(image(case, batch))
        torch.manual_seed(1)
        assert distance(by_blocks(through_block, trunk, image(case, batch)), want) == 0


@pytest.mark.parametrize('case,method', turns(METHODS, ('LoRA', 'E3VA')))
def test_methods(case, method):
    """Where a method takes a family: the stock output at the start, gradients of what trains, the rest as it was."""
    tuned = make(case)
    try:
        e3va.tune(tuned, dict(type=method, **METHODS[method]))
    except ValueError as error:
        assert str(error).startswith(method) or 'has no linear layer of the role' in str(error)
        return
    tuned.tuning.hooked = True
    for module in tuned.modules():
        if hasattr(module, 'choose') and method in BRANCHED:
            module.choose(0)
    x = image(case)
    if tuned.tuning.method.starts_at_trunk:
        assert distance(stock_outputs(case), tuned.eval()(x)) <= 1e-5
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    tuned.train()
    projected(tuned(x)).backward()
    trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    given = {name for name, parameter in tuned.named_parameters() if parameter.grad is not None}
    lacking = trained - given
    assert given <= trained and (not lacking or method in BRANCHED), lacking
    torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1).step()
    moved = {name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])}
    buffers = {name for name, _ in tuned.named_buffers(remove_duplicate=False)}
    assert moved - buffers <= trained
    assert {name.rpartition('.')[0] for name in moved} & {name.rpartition('.')[0] for name in trained}


@pytest.mark.parametrize('case', CASES)
def test_delta_and_merge(case, tmp_path):
    """LoRA's delta gives the outputs back, bit for bit; merged it is the stock trunk: classes, names, outputs."""
    stock, tuned, other = make(case), make(case), make(case)
    try:
        e3va.tune(tuned, dict(type='LoRA', rank=2))
    except ValueError as error:
        assert 'has no linear layer of the role' in str(error)
        return
    stir(tuned), tuned.eval()
    x = image(case)
    want = tuned(x)
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    e3va.load_delta(e3va.tune(other, dict(type='LoRA', rank=2)), tmp_path / 'delta.safetensors')
    assert distance(other(x), want) == 0
    merged = e3va.merge(tuned)
    assert set(merged.state_dict()) == set(stock.state_dict())
    assert [type(module) for module in merged.modules()] == [type(module) for module in stock.modules()]
    assert distance(merged(x), want) <= 1e-5 < distance(stock(x), want)


@pytest.mark.parametrize('case,mode', turns(['exact', 'bf16', 'int8', 'stream', 'stream_bf16'], ('exact',)))
def test_highway(case, mode):
    """E3VA's gradients in each mode against plain autograd (`torch.compiler.is_compiling` leaves all to it)."""
    from unittest import mock
    grads = []
    for plain in (True, False):
        tuned = make(case)
        try:
            e3va.tune(tuned, dict(type='E3VA', rank=2, mode=mode, init='random'))
        except ValueError as error:
            assert str(error).startswith('E3VA')
            return
        torch.manual_seed(1)
        tuned.train()
        left = mock.Mock(side_effect=lambda: plain or not torch.is_grad_enabled())
        with mock.patch('e3va.highway.segment.plain', left), mock.patch('e3va.layers.recompute.plain', left):
            projected(tuned(image(case))).backward()
        grads.append({name: p.grad for name, p in tuned.named_parameters() if p.grad is not None})
    assert set(grads[0]) == set(grads[1])
    cosine = torch.nn.functional.cosine_similarity(*(torch.cat([g.flatten() for g in each.values()]) for each in grads),
                                                   dim=0)
    assert cosine > {'exact': 1 - 1e-6, 'stream': 1 - 1e-6}.get(mode, 0.99)


@pytest.mark.parametrize('case', CASES)
def test_recompute(case):
    """LoRA's gradients with blocks that run again: the plain ones bit for bit, nearly these from rounded inputs."""
    grads = []
    for way in (None, 'block', 'block_int8'):
        tuned = e3va.tune(make(case), dict(type='LoRA', rank=2), recompute=way)
        stir(tuned), tuned.train()
        torch.manual_seed(1)
        projected(tuned(image(case))).backward()
        grads.append({name: p.grad for name, p in tuned.named_parameters() if p.grad is not None})
    assert all(torch.equal(value, grads[1][name]) for name, value in grads[0].items())
    exact, rounded = (torch.cat([each[name].flatten() for name in grads[0]]).double() for each in grads[1:])
    assert exact @ rounded / exact.norm() / rounded.norm() > 0.99


@pytest.mark.parametrize('case', filter(of_timm, CASES))
def test_maps(case):
    """TimmTrunk: maps for any neck, of the strides and channels that timm says."""
    _, kind, options, size = CASES[case]
    torch.manual_seed(0)
    trunk = MODELS.build(dict(type='e3va.TimmTrunk', name=kind, **options)).eval()
    with torch.no_grad():
        outs = trunk(image(case))
    assert len(outs) == len(trunk.out_indices)
    for out, channels, stride in zip(outs, trunk.channels, trunk.strides):
        assert tuple(out.shape) == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    tuned = e3va.tune(copy.deepcopy(trunk), dict(type='LoRA', rank=2))
    with torch.no_grad():
        assert distance(tuned(image(case)), outs) <= 1e-6
    assert len(used(trunk)) and tensors(outs)
