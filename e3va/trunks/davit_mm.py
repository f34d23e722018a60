"""DaViT of mmpretrain: tokens (B, L, C); blocks attend in windows and across channels in turn.

In front of each branch stands x + conv(x), an encoding of positions, which counts as output of the branch.
"""
from .davit import NO_PROMPTS  # noqa: F401 what timm's says of it
from .role import Role, branch
from .swin_mm import emit, merge, merges, out_norms  # noqa: F401 in these it is a Swin

CLASSES = ('mmpretrain.:DaViT',)
BLOCKS = ('mmpretrain.models.backbones.davit:SpatialBlock', 'mmpretrain.models.backbones.davit:ChannelBlock')
BLOCK = r'stages\.\d+\.blocks\.\d+\.\w+\.'
QKV = BLOCK + r'attn\.(w_msa\.)?qkv'
ROLES = dict(
    q=Role(QKV, 0, 3), k=Role(QKV, 1, 3), v=Role(QKV, 2, 3), proj=Role(BLOCK + r'attn\.(w_msa\.)?proj'),
    fc1=Role(BLOCK + r'ffn\.layers\.0\.0'), fc2=Role(BLOCK + r'ffn\.layers\.1'))


def stages(trunk):
    return [[half for block in stage.blocks for half in (block.spatial_block, block.channel_block)]
            for stage in trunk.stages]


def stem(trunk, image):
    return trunk.patch_embed(image)


def attend(block, x, shape, tap='before'):
    drop = getattr(block.attn, 'drop', None)                            # the attention across channels has none
    y, size = block.cpe1(x, shape), () if drop is None else (shape,)
    f, moved = branch(lambda: block.attn(block.norm1(y), *size), drop, tap)
    return f + (y - x) if tap else None, moved + y                      # the stock order, which decides the layout


def feed(block, x, shape, tap='before'):
    y = block.cpe2(x, shape)
    f, moved = branch(lambda: block.ffn(block.norm2(y), identity=0.), block.ffn.dropout_layer, tap)
    return f + (y - x) if tap else None, y + moved
