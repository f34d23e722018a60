# python tools/train.py configs/dinov3/dino_convnext-t_coco.py --method lora        (or e3va, fixed, full, ...)
#
# DINO (Zhang et al., ICLR 2023) on a DINOv3 ConvNeXt-T (Simeoni et al., arXiv 2508.10104): detection on COCO.
# Expect: not measured by us; the tests run one step of it at reduced width. More: README.md here.
# Source: mmdet's stock config (arXiv 2203.03605) with timm's trunk in the place of ResNet-50.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

# ---- what one edits
name = 'convnext_tiny.dinov3_lvd1689m'          # timm's; larger: convnext_small..., convnext_base..., convnext_large...
widths = [192, 384, 768]                        # of the stages of strides 8, 16, 32: base [256, 512, 1024]

model = dict(
    backbone=dict(_delete_=True, type='e3va.TimmTrunk', name=name, pretrained=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=widths))
