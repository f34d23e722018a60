"""Swin of timm: maps (B, H, W, C), merges at the start of a stage, one norm after the last."""
from .family import Branch
from .role import Role

CLASSES = ('timm.:SwinTransformer',)
QKV = r'layers\.\d+\.blocks\.\d+\.attn\.qkv'
ROLES = dict(
    q=Role(QKV, 0, 3), k=Role(QKV, 1, 3), v=Role(QKV, 2, 3),
    proj=Role(r'layers\.\d+\.blocks\.\d+\.attn\.proj'),
    fc1=Role(r'layers\.\d+\.blocks\.\d+\.mlp\.fc1'),
    fc2=Role(r'layers\.\d+\.blocks\.\d+\.mlp\.fc2'))
SIZES = dict(strict_img_size=False)
NO_PROMPTS = None


def stages(trunk):
    return [list(stage.blocks) for stage in trunk.layers]


def merges(trunk):
    return {i - 1: stage.downsample for i, stage in enumerate(trunk.layers) if i > 0}


def stem(trunk, image):
    return trunk.patch_embed(image), None


def run(block, x, shape):
    return block(x)


def branches(block, shape):
    return dict(attn=Branch(lambda x: block._attn(block.norm1(x)), block.drop_path1),
                mlp=Branch(lambda x: block.mlp(block.norm2(x)), block.drop_path2))
