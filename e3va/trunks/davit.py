"""DaViT of timm: maps (B, C, H, W); blocks attend in windows and across channels in turn, Florence-2's too.

In front of each branch stands x + conv(x), an encoding of positions, which counts as output of the branch.
"""
from .family import Branch
from .role import Role
from .vit_sam_timm import windows

CLASSES = ('timm.:DaVit',)
BLOCKS = ('timm.models.davit:SpatialBlock', 'timm.models.davit:ChannelBlock')
BLOCK = r'stages\.\d+\.blocks\.\d+\.\w+\.'
QKV = BLOCK + r'attn\.qkv'
ROLES = dict(
    q=Role(QKV, 0, 3), k=Role(QKV, 1, 3), v=Role(QKV, 2, 3),
    proj=Role(BLOCK + r'attn\.proj'), fc1=Role(BLOCK + r'mlp\.fc1'), fc2=Role(BLOCK + r'mlp\.fc2'))
HEAD = r'head(\.(?!norm\.).*)?'                                         # its norm is the trunk's
NORMS = ('norm_pre', 'head.norm')
AXIS = 1
NO_PROMPTS = 'its blocks attend in windows of a map and across channels, where prompts have no place'


def stages(trunk):
    return [[block for pair in stage.blocks for block in pair] for stage in trunk.stages]


def merges(trunk):
    return {i - 1: stage.downsample for i, stage in enumerate(trunk.stages) if i > 0}


def stem(trunk, image):
    return trunk.stem(image), None


def run(block, x, shape):
    return block(x)


def branches(block, shape):
    size = block.window_size[0] if hasattr(block, 'window_size') else 0
    return dict(attn=Branch(last(lambda x: attention(block, size, block.norm1(x))), block.drop_path1, front=block.cpe1),
                mlp=Branch(last(lambda x: block.mlp(block.norm2(x))), block.drop_path2, front=block.cpe2))


def last(run):
    """run with the channels last."""
    return lambda x: run(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def attention(block, size, x):
    return windows(size, lambda x: block.attn(x.flatten(1, 2)).view_as(x), x)


def end(trunk, x):
    return trunk.norm_pre(x)
