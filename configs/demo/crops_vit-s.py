# Which kind of object is on a crop of a detection set? As small a task as those of VTAB-1k, with a linear classifier on
# the mean of the last map of a ViT-S/14 in DINOv2's layout. What to expect: README.md here.
#
# python tools/demo/crops.py FOLDER OUT            the crops of your boxes: name the classes and OUT below
# python tools/sweep.py configs/demo/crops_vit-s.py --methods fixed,lora,e3va --tune
import os

_base_ = '../_base_/schedules/bench.py'
cache = os.path.expanduser(os.environ.get('E3VA_CACHE', '~/.cache/e3va'))

# ---- what one edits
classes = ('object', )
data_root = f'{cache}/crops/'
weights = f'{cache}/vit_s_focus.pth'
shown = (42, 42)              # px: nine patches
epochs = 6
batch = 16
rate = 5e-4                   # AdamW; of the classifier, which starts at random, ten times as much

# ---- the task; scored by the mean of the classes' accuracies, as some classes have ten times the objects of others
sweep = dict(score='single-label/recall', rates=[5e-4, 2e-3, 8e-3], weight_decays=[1e-4],
             rates_of=dict(full=[3e-5, 1e-4, 3e-4]),                    # a whole trunk takes less
             data='python tools/demo/crops.py FOLDER OUT makes it')

# ---- the classifier
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='e3va.TimmTrunk', name='vit_small_patch14_dinov2', out_indices=(11, ),
        init_cfg=dict(type='Pretrained', checkpoint=weights)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=len(classes), in_channels=384, loss=dict(type='CrossEntropyLoss')))
data_preprocessor = dict(
    num_classes=len(classes), mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

# ---- the data
resize = dict(type='Resize', scale=shown, interpolation='bicubic', backend='pillow')
train_pipeline = [
    dict(type='LoadImageFromFile'), resize, dict(type='RandomFlip', prob=0.5),
    dict(type='RandomFlip', prob=0.5, direction='vertical'), dict(type='PackInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), resize, dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=batch, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), drop_last=True,
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', data_root=data_root, ann_file='train.txt', metainfo=dict(classes=classes),
                 pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=128, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', data_root=data_root, ann_file='val.txt', metainfo=dict(classes=classes),
                 pipeline=test_pipeline))
val_evaluator = dict(type='SingleLabelMetric', items=('recall', ), average='macro', num_classes=len(classes))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

# ---- the schedule
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW', lr=rate, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, T_max=epochs, convert_to_iter_based=True)]
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
