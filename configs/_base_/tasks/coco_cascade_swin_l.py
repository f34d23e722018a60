# python tools/train.py configs/_base_/tasks/coco_cascade_swin_l.py --method e3va    (or full, fixed, lora, a file)
#
# The task: instance segmentation on COCO, Cascade Mask R-CNN with Swin-L, 36 epochs. Names no method.
# Expect: not measured by us. The paper gives E3VA alone (Table 2): with 2 images on a 32 GB GPU nothing else fits.
# Source: the Swin-B task with Swin-L's width and heads; Swin has published no such config for Swin-L.
_base_ = './coco_cascade_swin_b.py'

# ---- what one edits
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_large_patch4_window7_224_22k.pth'

# ---- the model
model = dict(
    backbone=dict(embed_dims=192, num_heads=[6, 12, 24, 48], init_cfg=dict(checkpoint=checkpoint)),
    neck=dict(in_channels=[192, 384, 768, 1536]))
