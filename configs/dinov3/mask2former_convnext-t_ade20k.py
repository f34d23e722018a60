# python tools/train.py configs/dinov3/mask2former_convnext-t_ade20k.py --method lora        (or e3va, fixed, full, ...)
#
# Mask2Former (Cheng et al., CVPR 2022) on a DINOv3 ConvNeXt-T (Simeoni et al., arXiv 2508.10104): ADE20K.
# Expect: not measured by us; the tests run one step of it at reduced width. More: README.md here.
# Source: mmsegmentation's stock config (arXiv 2112.01527) with timm's trunk in the place of ResNet-50.
_base_ = 'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'

# ---- what one edits
name = 'convnext_tiny.dinov3_lvd1689m'          # timm's; larger: convnext_small..., convnext_base..., convnext_large...
widths = [96, 192, 384, 768]                    # of its stages: base [128, 256, 512, 1024]

model = dict(
    backbone=dict(_delete_=True, type='e3va.TimmTrunk', name=name, pretrained=True, out_indices=(0, 1, 2, 3)),
    decode_head=dict(in_channels=widths))
