"""PVT v2 of timm: tokens (B, L, C) inside a stage, which ends in a norm; merges are overlapping convolutions.

`shape` is the grid with the norms of this stage and of the later ones beside it.
"""
from .family import Branch
from .role import Role

CLASSES = ('timm.:PyramidVisionTransformerV2',)
BLOCKS = ('timm.models.pvt_v2:Block',)
BLOCK = r'stages\.\d+\.blocks\.\d+\.'
ROLES = dict(
    q=Role(BLOCK + r'attn\.q'), k=Role(BLOCK + r'attn\.kv', 0, 2), v=Role(BLOCK + r'attn\.kv', 1, 2),
    proj=Role(BLOCK + r'attn\.proj'), fc1=Role(BLOCK + r'mlp\.fc1'), fc2=Role(BLOCK + r'mlp\.fc2'))
NO_PROMPTS = 'its keys are pooled from a map, in which prompts have no place'


def merges(trunk):
    return {i - 1: stage.downsample for i, stage in enumerate(trunk.stages) if i > 0}


def stem(trunk, image):
    return tokens(trunk.patch_embed(image), [stage.norm for stage in trunk.stages])


def tokens(x, norms):
    return x.flatten(1, 2), (*x.shape[1:3], norms)


def run(block, x, shape):
    return block(x, shape[:2])


def branches(block, shape):
    return dict(attn=Branch(lambda x: block.attn(block.norm1(x), shape[:2]), block.drop_path1),
                mlp=Branch(lambda x: block.mlp(block.norm2(x), shape[:2]), block.drop_path2))


def ended(x, shape):
    """The map (B, H, W, C) that a stage gives out."""
    return shape[2][0](x).unflatten(1, shape[:2])


def merge(module, x, shape):
    return tokens(module(ended(x, shape).permute(0, 3, 1, 2).contiguous()), shape[2][1:])


def out_norms(trunk):
    last = f'stages.{len(trunk.stages) - 1}.norm'
    return [f'norm{i}' for i in trunk.out_indices] if hasattr(trunk, 'out_indices') else [last]


def emit(trunk, tap, x, shape):
    x = ended(x, shape)
    if hasattr(trunk, 'out_indices'):
        x = getattr(trunk, f'norm{tap[0]}')(x)
    return x.permute(0, 3, 1, 2).contiguous()
