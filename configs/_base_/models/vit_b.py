# ViT-B/16 from ImageNet-21K at 224 px: the model of the classification tasks, without its number of classes.
# Source: Dosovitskiy et al., arXiv:2010.11929. The weights are Google's second release (Steiner et al.,
# arXiv:2106.10270), which SSF and GPS take; timm fetches them. VPT, NOAH, FacT and Bi-LoRA take the first:
# `--cfg-options model.backbone.init_cfg.checkpoint=timm://vit_base_patch16_224.orig_in21k`. A file that is at hand is
# named as `timm://vit_base_patch16_224?file=ViT-B_16.npz`. Both were trained on inputs from -1 to 1.
# Label smoothing, Mixup and CutMix are those of SSF and GPS.
checkpoint = 'timm://vit_base_patch16_224.augreg_in21k'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer', arch='b', img_size=224, patch_size=16, drop_rate=0., drop_path_rate=0.,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')),
    head=dict(
        type='VisionTransformerClsHead', in_channels=768,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)
