# ConvNeXt-B from ImageNet-22K at 224 px: a model for the classification tasks, without its number of classes.
# Source: Liu et al., arXiv:2201.03545, and mmpretrain's conversion of the authors' weights; label smoothing, Mixup and
# CutMix are mmpretrain's, and those of SSF and GPS.
checkpoint = ('https://mmassets.onedl.ai/mmclassification/v0/convnext/'
              'convnext-base_3rdparty_in21k_20220124-13b83eec.pth')

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ConvNeXt', arch='base', drop_path_rate=0.,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')),
    head=dict(
        type='LinearClsHead', in_channels=1024, init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
