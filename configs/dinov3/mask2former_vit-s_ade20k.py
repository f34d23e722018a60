# python tools/train.py configs/dinov3/mask2former_vit-s_ade20k.py --method lora        (or e3va, fixed, full, ...)
#
# Mask2Former (Cheng et al., CVPR 2022) on a DINOv3 ViT-S/16 (Simeoni et al., arXiv 2508.10104): ADE20K.
# Expect: not measured by us; the tests run one step of it at reduced width. More: README.md here.
# Source: mmsegmentation's stock config (arXiv 2112.01527) with timm's trunk in the place of ResNet-50; the pyramid is
# that of mmsegmentation's plain ViTs.
_base_ = 'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'

# ---- what one edits
name = 'vit_small_patch16_dinov3.lvd1689m'      # timm's; larger: vit_base_..., vit_large_...
width = 384                                     # of the trunk: 768, 1024
blocks = (2, 5, 8, 11)                          # whose outputs become the pyramid

# ---- the model: four maps of stride 16 become a pyramid of strides 4, 8, 16, 32
model = dict(
    backbone=dict(_delete_=True, type='e3va.TimmTrunk', name=name, pretrained=True, out_indices=blocks),
    neck=dict(
        type='Feature2Pyramid', embed_dim=width, rescales=[4, 2, 1, 0.5], norm_cfg=dict(type='GN', num_groups=32)),
    decode_head=dict(in_channels=[width] * 4))
