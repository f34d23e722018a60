"""Small tasks of the three libraries on one small Swin or ViT, and their deltas."""
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import e3va
from e3va.command.config import apply_method, load_config
from tests.conftest import METHODS, SWIN, SWIN_ARCH, VIT_ARCH, build, stir

CLASSES = ('first', 'second', 'third')
SIZE = 96


def base(folder, trunk='swin_mmdet', seed=3):
    """A checkpoint of the small trunk alone."""
    path = folder / f'trunk_{seed}.pth'
    state = build(trunk, seed=seed, drop_path_rate=0.).state_dict()
    torch.save({f'backbone.{name}': value for name, value in state.items() if not name.startswith(('norm', 'ln1'))},
               path)
    return path


def config(library, trunk_file, method, vit=False):
    """A config of a library with its own Swin, or mmpretrain's ViT, of the same sizes and the same input pipeline."""
    if library == 'mmdet':
        cfg = load_config('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py')
        cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 3
        cfg.model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
        cfg.model.test_cfg.rcnn.update(score_thr=0., max_per_img=5)
        pack, channels = 'PackDetInputs', [24, 48, 96, 192]
        cfg.model.neck.update(in_channels=channels, out_channels=16)
        cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
        cfg.model.roi_head.bbox_roi_extractor.out_channels = cfg.model.roi_head.mask_roi_extractor.out_channels = 16
        cfg.model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32)
        cfg.model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_convs=1)
    elif library == 'mmseg':
        cfg = load_config('mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py')
        cfg.model.decode_head.update(in_channels=[24, 48, 96, 192], channels=16, num_classes=3,
                                     norm_cfg=dict(type='BN'))
        cfg.model.auxiliary_head.update(in_channels=96, channels=16, num_classes=3, norm_cfg=dict(type='BN'))
        pack = 'PackSegInputs'
    else:
        cfg = load_config('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py')
        cfg.model.head.update(in_channels=192, num_classes=3)
        pack = 'PackInputs'
    means = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    preprocessor = dict(mmdet=dict(type='DetDataPreprocessor', bgr_to_rgb=True, pad_size_divisor=32, **means),
                        mmseg=dict(type='SegDataPreProcessor', bgr_to_rgb=True, size_divisor=32, **means),
                        mmpretrain=dict(type='ClsDataPreprocessor', to_rgb=True, num_classes=3, **means))[library]
    cfg.model.data_preprocessor = preprocessor
    init = dict(type='Pretrained', checkpoint=str(trunk_file), prefix='backbone.')
    if vit:
        indices = [3] if library == 'mmpretrain' else [0, 1, 2, 3]
        cfg.model.backbone = dict(
            type='mmpretrain.VisionTransformer', arch=VIT_ARCH, img_size=64, patch_size=16, init_cfg=init,
            out_type='cls_token' if library == 'mmpretrain' else 'featmap', out_indices=indices, final_norm=True)
        if library == 'mmdet':
            cfg.model.neck.in_channels = [24] * 4
        elif library == 'mmseg':
            cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels = [24] * 4, 24
        else:
            cfg.model.neck, cfg.model.head.in_channels = None, 24
    elif library == 'mmpretrain':
        cfg.model.backbone.update(arch=SWIN_ARCH, img_size=64, drop_path_rate=0., pad_small_map=True, init_cfg=init)
    else:
        cfg.model.backbone.update(SWIN, init_cfg=init, drop_path_rate=0.)
        if library == 'mmdet':
            cfg.model.backbone.convert_weights = False
    keys = ('img_path', 'ori_shape', 'img_shape', 'scale_factor', *(['img_id'] if library == 'mmdet' else []))
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'), dict(type='Resize', scale=(SIZE, SIZE), keep_ratio=False),
        dict(type=pack, meta_keys=keys)]
    method = METHODS[method] if isinstance(method, str) else method
    return apply_method(cfg, Config(dict(method=method)))


def make(folder, library, method='e3va', trunk_file=None, vit=False, seed=0, **options):
    """(delta file, its model in eval): a task whose trained values are its own, over the base's trunk."""
    torch.manual_seed(seed)
    cfg = config(library, trunk_file or base(folder, 'vit_mmpretrain' if vit else 'swin_mmdet'), method, vit)
    with DefaultScope.overwrite_default_scope(library):
        model = MODELS.build(cfg.model)
        model.init_weights()
    trunk = model.backbone
    stir(model) if seed == 0 else perturb(model, seed)
    if hasattr(trunk, 'tuning'):
        trunk.tuning.hooked = True
    name = method if isinstance(method, str) else method['type']
    path = folder / f'{library}_{name}_{seed}.safetensors'
    e3va.save_delta(model, path, dataset_meta=dict(classes=CLASSES), config=cfg, **options)
    return path, model.eval()


def perturb(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def picture(seed=0, height=70, width=90):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def alone(library, model, image):
    """The data sample that the library's own API gives."""
    from e3va.serve.images import Transforms
    with DefaultScope.overwrite_default_scope(library):
        steps = config_of(library)
        batch = Transforms(steps)(image)
    with torch.no_grad():
        return model.test_step(batch)[0]


def config_of(library):
    pack = dict(mmdet='PackDetInputs', mmseg='PackSegInputs', mmpretrain='PackInputs')[library]
    keys = ('img_path', 'ori_shape', 'img_shape', 'scale_factor', *(['img_id'] if library == 'mmdet' else []))
    return [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(SIZE, SIZE), keep_ratio=False),
            dict(type=pack, meta_keys=keys)]


def outcome(sample):
    """What a data sample says, a list of tensors."""
    if 'pred_instances' in sample:
        found = sample.pred_instances
        return [found.bboxes, found.scores, found.labels, torch.as_tensor(found.masks)]
    if 'pred_sem_seg' in sample:
        return [sample.pred_sem_seg.data, sample.seg_logits.data]
    return [sample.pred_score]


def equal(a, b):
    a, b = outcome(a), outcome(b)
    return len(a) == len(b) and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b))
