# python tools/train.py configs/dinov3/dino_vit-s_coco.py --method lora        (or e3va, fixed, full, ...)
#
# DINO (Zhang et al., ICLR 2023) on a DINOv3 ViT-S/16 (Simeoni et al., arXiv 2508.10104): detection on COCO.
# Expect: not measured by us; the tests run one step of it at reduced width. More: README.md here.
# Source: mmdet's stock config (arXiv 2203.03605) with timm's trunk in the place of ResNet-50; the pyramid is ViTDet's
# (Li et al., ECCV 2022), of three blocks where that takes the last one alone.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
custom_imports = dict(imports=['e3va.trunks.pyramid'], allow_failed_imports=False)

# ---- what one edits
name = 'vit_small_patch16_dinov3.lvd1689m'      # timm's; larger: vit_base_..., vit_large_...
width = 384                                     # of the trunk: 768, 1024
blocks = (5, 8, 11)                             # whose outputs become the pyramid

# ---- the model: three maps of stride 16 become a pyramid of strides 8, 16, 32; DINO's own neck adds 64
model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(_delete_=True, type='e3va.TimmTrunk', name=name, pretrained=True, out_indices=blocks),
    neck=[
        dict(type='e3va.Feature2Pyramid', embed_dim=width, rescales=[2, 1, 0.5]),
        dict(type='ChannelMapper', in_channels=[width] * 3, kernel_size=1, out_channels=256, act_cfg=None,
             norm_cfg=dict(type='GN', num_groups=32), num_outs=4)])
