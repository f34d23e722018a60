# Crops of blood cells: which of three kinds is it? Of BCCD's boxes (MIT): 300 crops to train, 198 val, 945 test.
#
# python tools/demo/crops.py data/bccd data/crops                          the crops, once
# python tools/sweep.py configs/demo/crops.py --methods fixed,lora         the whole protocol of configs/bench
# python tools/train.py configs/demo/crops.py --method lora                one run
_base_ = 'crops_vit-s.py'

# ---- what one edits
classes = ('Platelets', 'RBC', 'WBC')
data_root = 'data/crops/'

# ---- the task
sweep = dict(data='python tools/demo/crops.py data/bccd data/crops makes it')
model = dict(head=dict(num_classes=len(classes)))
data_preprocessor = dict(num_classes=len(classes))
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dict(dataset, ann_file='test.txt'))
val_evaluator = dict(num_classes=len(classes))
test_evaluator = val_evaluator
