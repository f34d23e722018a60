"""Swin V2 of timm: maps (B, H, W, C), norms behind the branches, merges at a stage's start, one norm at the end."""
from .family import Branch
from .swin_timm import ROLES, SIZES, merges, run, stages, stem  # noqa: F401 in these it is the first Swin

CLASSES = ('timm.:SwinTransformerV2',)
BLOCKS = ('timm.:SwinTransformerV2Block',)
IN_PLACE = r'layers\.\d+\.blocks\.\d+\.attn\.cpb_mlp\.0'                 # by the ReLU behind it
NO_PROMPTS = 'its attention compares angles and biases them by a network of positions, where prompts have none'


def branches(block, shape):
    return dict(attn=Branch(lambda x: block.norm1(block._attn(x)), block.drop_path1),
                mlp=Branch(lambda x: block.norm2(block.mlp(x)), block.drop_path2))
