# Handwritten digits in the manner of VTAB-1k: 800 images of MNIST to train and 200 to validate, 1,000 to test.
#
# python tools/sweep.py configs/bench/digits.py --methods fixed,lora       the whole protocol, see README.md here
# python tools/train.py configs/bench/digits.py --method lora              one run
_base_ = '../demo/crops_vit-s.py'

# ---- what one edits
classes = tuple('0123456789')
data_root = f'{_base_.cache}/digits/'
epochs = 4

# ---- the task
gps = ['gps', 'gps_layer', 'gps_net', 'gps_net_random', 'gps_neuron_random', 'gps_magnitude', 'gps_ce']
adaptformer = ['adaptformer', 'adaptformer_8', 'pear_adaptformer', 'vp_adaptformer', 'bi_adaptformer',
               'pear_bi_adaptformer']
late = ['ssf', 'adapter', 'adapter_pfeiffer', 'vpt_deep', 'vpt_shallow', 'e2vpt', 'compacter', 'compacter_plusplus',
        'adamix', 'spt_adapter', 'repadapter', 'pear_e3va']
sweep = dict(score='accuracy/top1', rates=[3e-4, 1e-3, 3e-3, 1e-2], weight_decays=[0.01, 0.1],
             rates_of=dict(                                             # where these end too early for a method
                 full=[3e-5, 1e-4, 3e-4, 1e-3, 3e-3],
                 mona=[1e-4, 3e-4, 1e-3, 3e-3],
                 partial=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
                 fixed=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
                 norm_tuning=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1],
                 fourierft=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
                 **dict.fromkeys(late, [1e-3, 3e-3, 1e-2, 3e-2]),
                 **dict.fromkeys(gps, [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]) | dict(
                     gps_net=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2], gps_net_random=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]),
                 **dict.fromkeys(adaptformer, [1e-3, 3e-3, 1e-2, 3e-2, 1e-1])),
             backbone_rate=dict.fromkeys(['full', 'partial', *gps], 0.1),       # the trunk's weights take less
             data='python tools/demo/prepare.py fetches it')
del gps, adaptformer, late                                              # they say what is tried, not what is run
model = dict(head=dict(num_classes=len(classes)))
data_preprocessor = dict(num_classes=len(classes))
resize = dict(type='Resize', scale=_base_.shown, interpolation='bicubic', backend='pillow')
train_pipeline = [dict(type='LoadImageFromFile'), resize, dict(type='PackInputs')]      # a turned 6 is a 9
train_dataloader = dict(dataset=dict(
    data_root=data_root, ann_file='train.txt', metainfo=dict(classes=classes), pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, ann_file='val.txt', metainfo=dict(classes=classes)))
test_dataloader = dict(dataset=dict(data_root=data_root, ann_file='test.txt', metainfo=dict(classes=classes)))
val_evaluator = dict(_delete_=True, type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator

# ---- the schedule
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, T_max=epochs, convert_to_iter_based=True)]
