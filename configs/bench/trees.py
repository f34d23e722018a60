# Tree crowns: boxes in aerial images of two forests (DeepForest's samples, MIT licence), tiles of the demo.
#
# python tools/sweep.py configs/bench/trees.py --methods fixed,lora       the whole protocol, see README.md here
# python tools/train.py configs/bench/trees.py --method lora              one run
_base_ = '../demo/atss_vit-s.py'

# ---- what one edits
epochs = 3

# ---- the task
sweep = dict(score='coco/bbox_mAP', times=100, rates=[3e-4, 1e-3, 3e-3], weight_decays=[0.01, 0.1],
             data='python tools/demo/prepare.py fetches it')
test_pipeline = [*_base_.load, _base_.resize, dict(
    type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'))]
# of each of the two images that nothing is trained on the upper half chooses and the lower half tests
val_dataloader = dict(dataset=dict(indices=[*range(12), *range(25, 29)], pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(indices=[*range(12, 25), *range(29, 34)], pipeline=test_pipeline))
val_evaluator = dict(ann_file=None)
test_evaluator = val_evaluator

# ---- the schedule
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, T_max=epochs, convert_to_iter_based=True)]
