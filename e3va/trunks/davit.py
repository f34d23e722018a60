"""DaViT of timm: maps (B, C, H, W); blocks attend in windows and across channels in turn, Florence-2's too.

In front of each branch stands x + conv(x), an encoding of positions, which counts as output of the branch.
`shape` holds the first block of each stage, the only ones whose maps do not come as a view of tokens (see `viewed`).
"""
from .family import Branch
from .role import Role
from .windows import last, windows_of_tokens

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
    return trunk.stem(image), [stage.blocks[0][0] for stage in trunk.stages]


def run(block, x, shape):
    return block(x)


def branches(block, shape):
    size = block.window_size[0] if hasattr(block, 'window_size') else 0
    first = any(block is one for one in shape)
    return dict(attn=Branch(last(lambda x: windows_of_tokens(size, block.attn, block.norm1(x))), block.drop_path1,
                            front=lambda x: block.cpe1(x if first else viewed(x))),
                mlp=Branch(last(lambda x: block.mlp(block.norm2(x))), block.drop_path2,
                           front=lambda x: block.cpe2(viewed(x))))


def viewed(x):
    """x with the strides that the stock block's view of tokens has: by them torch picks a convolution for one image."""
    return x.flatten(2).view(x.shape)


def merge(module, x, shape):
    return module(viewed(x)), shape


def end(trunk, x):
    return trunk.norm_pre(viewed(x))
