# python tools/train.py configs/_base_/tasks/voc_retinanet_swin_l.py --method e3va    (or full, fixed, lora, a file)
#
# The task: detection on Pascal VOC 07+12, RetinaNet with Swin-L, 12 epochs (4 over data repeated 3 times); no method.
# Expect: not measured by us. Paper (E3VA, Table 1): 83.5 AP with the whole trunk tuned, 83.6 with the trunk fixed.
# Source: mmdet's RetinaNet for VOC, with the trunk as in mmdet's swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py; AdamW, its
# rate and the width of DropPath are those of the first author's VOC configs (https://github.com/Leiyi-Hu/mona).
# Data: data/VOCdevkit/{VOC2007,VOC2012}; test on VOC2007 with the 11-point AP, as in mmdet.
_base_ = 'mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py'

# ---- what one edits
batch_size = 2            # images per GPU, as in the E3VA paper (section 4.2)
learning_rate = 1e-4      # for 8 GPUs x 2 images, our assumption: the paper does not state the number of GPUs
num_classes = 20
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_large_patch4_window7_224_22k.pth'

# ---- for tools/sweep.py; there is no split to choose on
sweep = dict(
    score='pascal_voc/mAP', times=100, rates=[learning_rate], weight_decays=[0.05],
    data='the first lines of the file say what belongs there')

# ---- the model: the neck begins at the second stage, so the first one has no output and no norm
model = dict(
    backbone=dict(
        _delete_=True, type='SwinTransformer', embed_dims=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48],
        window_size=7, drop_path_rate=0.2, out_indices=(1, 2, 3), convert_weights=True,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=[384, 768, 1536], start_level=0),
    bbox_head=dict(num_classes=num_classes))

# ---- the schedule: mmdet's (the rate drops to a tenth after 3 of 4 epochs), no warm-up
train_dataloader = dict(batch_size=batch_size)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=learning_rate, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={name: dict(decay_mult=0.) for name in
                     ('absolute_pos_embed', 'relative_position_bias_table', 'norm')}))
