"""The libraries' inference APIs on tuned configs: checkpoints and deltas."""
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

import e3va
from e3va.command.config import apply_method, load_config, load_method
from tests.conftest import SWIN, SWIN_ARCH, build


def small(library, folder):
    """(config of a stock model with a small Swin under E3VA, a model built from it with moved adapters)."""
    torch.manual_seed(0)
    stock = build(f'swin_{library}')
    prefix = 'backbone.' if library == 'mmdet' else ''
    torch.save(dict(state_dict={prefix + key: value for key, value in stock.state_dict().items()
                                if not key.startswith('norm')}), folder / 'trunk.pth')
    init = dict(type='Pretrained', checkpoint=str(folder / 'trunk.pth'))
    if library == 'mmdet':
        cfg = load_config('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py')
        cfg.model.backbone.update(SWIN, init_cfg=init, convert_weights=False)
        cfg.model.neck.update(in_channels=[24, 48, 96, 192])
        next(step for step in cfg.test_dataloader.dataset.pipeline if step.type == 'Resize').scale = (160, 120)
        cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 3
    elif library == 'mmseg':
        cfg = load_config('mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py')
        cfg.model.backbone.update(SWIN, init_cfg=init)
        cfg.model.decode_head.update(in_channels=[24, 48, 96, 192], channels=16, num_classes=3,
                                     norm_cfg=dict(type='BN'))
        cfg.model.auxiliary_head.update(in_channels=96, channels=16, num_classes=3, norm_cfg=dict(type='BN'))
    else:
        cfg = load_config('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py')
        cfg.model.backbone.update(arch=SWIN_ARCH, img_size=64, use_abs_pos_embed=True, init_cfg=init)
        cfg.model.head.update(in_channels=192, num_classes=3)
    cfg = apply_method(cfg, load_method('e3va'))
    cfg.model.backbone.method.rank = 2
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    cfg.dump(folder / 'config.py')
    return str(folder / 'config.py'), model.eval()


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)


@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpretrain'])
def test_inferencers(library, tmp_path, picture):
    """A checkpoint and a delta give the same model through init_* and the inferencers, with the classes."""
    config, model = small(library, tmp_path)
    classes = ('first', 'second', 'third')
    meta = dict(dataset_meta=dict(classes=classes, palette=[(9, 9, 9), (99, 9, 9), (9, 99, 9)]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'whole.pth')
    e3va.save_delta(model, tmp_path / 'delta.safetensors', dataset_meta=meta['dataset_meta'])
    for source in (str(tmp_path / 'whole.pth'), f'e3va://{tmp_path / "delta.safetensors"}'):
        if library == 'mmdet':
            from mmdet.apis import DetInferencer, inference_detector, init_detector
            loaded = init_detector(config, source, device='cpu')
            boxes = inference_detector(loaded, picture).pred_instances.bboxes
            assert len(boxes)
            given = DetInferencer(config, source, device='cpu')(picture, return_datasamples=True, no_save_vis=True)
            assert torch.equal(given['predictions'][0].pred_instances.bboxes, boxes)
        elif library == 'mmseg':
            from mmseg.apis import MMSegInferencer, inference_model, init_model
            loaded = init_model(config, source, device='cpu')
            labels = inference_model(loaded, picture).pred_sem_seg.data[0]
            given = MMSegInferencer(config, source, device='cpu')(picture)
            assert np.array_equal(given['predictions'], labels.numpy())
        else:
            from mmpretrain import ImageClassificationInferencer, get_model
            loaded = get_model(config, source, device='cpu')
            given = ImageClassificationInferencer(loaded, device='cpu')(picture)[0]
            again = ImageClassificationInferencer(config, source, device='cpu')(picture)[0]
            assert np.array_equal(given['pred_scores'], again['pred_scores'])
        state = loaded.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        found = getattr(loaded, 'dataset_meta', None) or loaded._dataset_meta
        assert tuple(found['classes']) == classes


def test_delta_for_the_stock_config(tmp_path):
    """The merged LoRA trunk of `merge_delta --stock` is an ordinary checkpoint of the stock detector."""
    from mmengine.runner import load_checkpoint

    from tools.model_converters import merge_delta
    stock = build('swin_mmdet')
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in stock.state_dict().items()}),
               tmp_path / 'trunk.pth')
    tuned = build('swin_mmdet', 'lora', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'trunk.pth')))
    from mmengine.config import ConfigDict
    tuned.init_cfg = ConfigDict(tuned.init_cfg)
    tuned.init_weights()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    model = torch.nn.ModuleDict(dict(backbone=tuned))
    e3va.save_delta(model, tmp_path / 'delta.safetensors')
    merge_delta.main([str(tmp_path / 'delta.safetensors'), str(tmp_path / 'stock.pth'), '--stock'])
    plain = torch.nn.ModuleDict(dict(backbone=build('swin_mmdet', seed=7)))
    load_checkpoint(plain, str(tmp_path / 'stock.pth'), strict=True)
    from tests.conftest import distance, image
    plain.backbone.eval(), tuned.eval()
    assert distance(plain.backbone(image('swin_mmdet')), tuned(image('swin_mmdet'))) <= 1e-5
