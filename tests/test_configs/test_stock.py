"""Stock configs of mmdet and mmsegmentation, thin, with `--method e3va`, `lora` and others: a training step."""
import copy
import itertools
from functools import partial

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData

from e3va.command.config import apply_method, load_config, load_method, nodes, prepare
from e3va.dmlora.method import draw
from e3va.gps.gradients import select
from e3va.gps.hook import task_loss
from e3va.noah.method import drawn, set_sizes, space_of
from e3va.registry import MODELS

from .reduce import NECK, follow

SIZE = (64, 96)
SWIN = dict(embed_dims=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8])
PYRAMID = dict(embed_dims=8, num_layers=[1, 1, 2, 1])                   # widths by the heads, 1, 2, 5, 8
PLAIN = dict(embed_dims=32, num_layers=4, num_heads=2, img_size=SIZE)
TAPS = dict(PLAIN, out_indices=(0, 1, 2, 3))
TIMM = dict(type='e3va.TimmTrunk', depths=(1, 1, 2, 1), embed_dims=(8, 16, 40, 64), num_heads=(1, 2, 5, 8))
FOUR = (8, 16, 40, 64)
# config: what is thinner, or another, in its backbone; the widths of the maps it gives; keys of the model besides
STOCK = {
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py': (PYRAMID, FOUR),
    'mmseg::segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py': (PLAIN, (32,), {'decode_head.num_heads': 2}),
    'mmseg::setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512.py': (TAPS, (32,) * 4),
    'mmseg::setr/setr_vit-l_mla_8xb2-160k_ade20k-512x512.py': (TAPS, (32,) * 4, {'decode_head.mla_channels': 8}),
    'mmseg::vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512.py': (TAPS, (32,) * 4),
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py': (SWIN, (16, 32, 64, 128)),
    'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py': (
        dict(arch=dict(depths=[1, 1, 2, 1], channels=list(FOUR))), FOUR),
    'mmseg::beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py': (TAPS, (32,) * 4),
    'mmseg::mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py': (TAPS, (32,) * 4),
    'mmseg::knet/knet-s3_swin-t_upernet_8xb2-adamw-80k_ade20k-512x512.py': (SWIN, (16, 32, 64, 128)),
    'mmseg::mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py': (SWIN, (16, 32, 64, 128)),
    'mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py': (PYRAMID, FOUR),
    'mmdet::pvt/retinanet_pvtv2-b0_fpn_1x_coco.py': (PYRAMID, FOUR),
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py': (SWIN, (16, 32, 64, 128)),
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': (dict(PYRAMID, type='PyramidVisionTransformerV2'), FOUR),
    'mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py': (SWIN, (16, 32, 64, 128), {'bbox_head.embed_dims': NECK}),
    'mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py': (SWIN, (16, 32, 64, 128)),
    'mmdet::rtmdet/rtmdet_l_swin_b_4xb32-100e_coco.py': (SWIN, (32, 64, 128)),
    'mmdet::atss/atss_r50_fpn_1x_coco.py': (dict(TIMM, name='pvt_v2_b0'), FOUR),
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': (dict(
        type='e3va.TimmTrunk', name='convnext_tiny', depths=(1, 1, 2, 1), dims=FOUR), FOUR),
}
SMALL = dict(num_feats=NECK // 2, num_queries=20, num_points=64, batch_augments=None, size=SIZE, pretrained=None,
             num_groups=8, num=16, nms_pre=50, max_per_img=10)


def thin(cfg, changes, widths, more=()):
    """The same config with a thin model for small images; a backbone of another type takes the place of its own."""
    model = cfg.model
    if 'type' in changes:
        model.backbone = copy.deepcopy(changes)
    else:
        model.backbone.update(copy.deepcopy(changes))
        model.backbone.pop('init_cfg', None)
    follow(model, dict(enumerate(widths)))
    for node in nodes({key: value for key, value in model.items() if key != 'backbone'}):
        node.update({key: SMALL[key] for key in set(SMALL) & set(node)})
    model.update({key: SMALL[key] for key in ('num_queries', 'pretrained') if key in model})
    cfg.merge_from_dict({f'model.{key}': value for key, value in dict(more).items()})
    return cfg


def batch(cfg, count=2):
    """Images and their truth, as the loader gives them."""
    if cfg.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs
        masks = any(node.get('with_mask') for node in nodes(cfg.train_dataloader))
        return demo_mm_inputs(count, (3, *SIZE), [2] * count, with_mask=masks)
    from mmseg.structures import SegDataSample
    draw = torch.Generator().manual_seed(0)
    truths = [SegDataSample(metainfo=dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE)) for _ in range(count)]
    for truth in truths:
        truth.gt_sem_seg = PixelData(data=torch.randint(19, (1, *SIZE), generator=draw))
    return dict(inputs=[torch.randint(256, (3, *SIZE), dtype=torch.uint8, generator=draw) for _ in range(count)],
                data_samples=truths)


# Methods that are about more than layers of their own, on a detector with masks and a segmenter.
OTHERS = dict(spt_lora=dict(rank=2, budget=2000), spt_adapter=dict(rank=2, budget=2000), lst=dict(reduction=4),
              adamix=dict(rank=2), adamix_lora=dict(rank=2), e2vpt=dict(segments=4), noah={})
DENSE = [config for config in STOCK if 'mask-rcnn_swin' in config or 'pre_upernet' in config]


@pytest.mark.parametrize('config,method', [
    *itertools.product(STOCK, ('e3va', 'lora')), *itertools.product(DENSE, OTHERS)])
def test_a_step(config, method):
    method_cfg = load_method(method)
    method_cfg.method.update(OTHERS.get(method, dict(rank=2)))
    cfg = prepare(apply_method(thin(load_config(config), *STOCK[config]), method_cfg))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        model.init_weights()
        if method.startswith('spt'):
            select(model, [batch(cfg)], partial(task_loss, model))
        if method.startswith('adamix'):
            draw(model, 0)
        if method == 'noah':
            set_sizes(model.backbone, drawn(space_of(model.backbone, model.backbone.tuning.method), 0))
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        before = {name: value.clone() for name, value in model.backbone.named_parameters()}
        losses = model.train().train_step(batch(cfg), wrapper)
    assert all(torch.isfinite(value).all() for value in losses.values())
    trained = {name for name, value in model.backbone.named_parameters() if value.requires_grad}
    moved = {name for name, value in model.backbone.named_parameters() if not torch.equal(value, before[name])}
    assert moved and moved <= trained and not any(name in model.backbone.tuning.keys for name in moved
                                                  if method == 'lora')
