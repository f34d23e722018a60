# Blood cells: boxes of red cells, white cells and platelets (BCCD, MIT licence), in Pascal VOC's layout.
#
# python tools/sweep.py configs/bench/cells.py --methods fixed,lora        the whole protocol, see README.md here
# python tools/train.py configs/bench/cells.py --method lora               one run
_base_ = '../demo/atss_vit-s.py'

# ---- what one edits
classes = ('Platelets', 'RBC', 'WBC')
data_root = 'data/bccd/VOC2007/'
shown = (140, 140)            # px of the longest side
epochs = 3

# ---- the task
sweep = dict(score='coco/bbox_mAP', times=100, rates=[1e-3, 3e-3, 1e-2], weight_decays=[0.01],
             rates_of=dict(                                             # where these end too early for a method
                 **dict.fromkeys(['bitfit', 'gps'], [3e-4, 1e-3, 3e-3]),
                 **dict.fromkeys(['ssf', 'adaptformer'], [1e-3, 3e-3, 1e-2, 3e-2])),
             backbone_rate=dict(full=0.1),                              # a whole backbone takes less
             data='configs/bench/README.md says where it is had')
model = dict(bbox_head=dict(num_classes=len(classes)))
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
resize = dict(type='Resize', scale=shown, keep_ratio=True)
train_pipeline = [*load, resize, dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
test_pipeline = [*load, resize, dict(
    type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'))]
common = dict(
    _delete_=True, type='XMLDataset', metainfo=dict(classes=classes), data_root=data_root,
    data_prefix=dict(sub_data_root=''))
train_dataloader = dict(dataset=dict(
    common, ann_file='ImageSets/Main/train.txt', pipeline=train_pipeline,
    filter_cfg=dict(filter_empty_gt=True, min_size=1, bbox_min_size=1)))
val_dataloader = dict(dataset=dict(common, ann_file='ImageSets/Main/val.txt', test_mode=True, pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(common, ann_file='ImageSets/Main/test.txt', test_mode=True, pipeline=test_pipeline))
val_evaluator = dict(_delete_=True, type='CocoMetric', metric='bbox')
test_evaluator = val_evaluator

# ---- the schedule
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, T_max=epochs, convert_to_iter_based=True)]
