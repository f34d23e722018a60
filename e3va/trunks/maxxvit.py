"""MaxViT, CoAtNet and their kin of timm: maps (B, C, H, W); blocks of convolutions, of attention, or both in a row.

A row counts as several blocks: one branch of convolutions, then attention in windows and in a grid, with an MLP each. A
stage begins with a block that pools and widens; the very first one counts as part of the stem.

The q, k and v of a head lie side by side in most qkv layers, so they are no slices: each role is the whole layer.
Some variants attend by convolutions and have no linears.
"""
from .davit import last
from .family import Branch
from .role import Role

CLASSES = ('timm.:MaxxVit',)
BLOCKS = tuple(f'timm.models.maxxvit:{name}' for name in (
    'MbConvBlock', 'ConvNeXtBlock', 'TransformerBlock2d', 'PartitionAttentionCl', 'PartitionAttention2d',
    'ParallelPartitionAttention'))
BLOCK = r'stages\.\d+\.blocks\.\d+\.'
ATTENTION = BLOCK + r'(attn_(block|grid)\.attn|attn\.attn_(block|grid))\.'
QKV = Role(ATTENTION + 'qkv')
ROLES = dict(q=QKV, k=QKV, v=QKV, proj=Role(ATTENTION + 'proj'),
             fc1=Role(BLOCK + r'attn(_block|_grid)?\.mlp\.fc1'), fc2=Role(BLOCK + r'attn(_block|_grid)?\.mlp\.fc2'))
HEAD = r'head(\.(?!norm\.).*)?'                                         # its norm is the trunk's
NORMS = ('norm', 'head.norm')
AXIS = 1
INSIDE = True


def size(trunk):
    return trunk.img_size                                               # of which windows and grids are fractions


def stages(trunk):
    first, *others = map(blocks_of, trunk.stages)
    return [first[1:], *others]


def blocks_of(stage):
    parts = [part for block in stage.blocks for part in (block.children() if hasattr(block, 'conv') else [block])]
    return [block for part in parts for block in (part if type(part).__name__ == 'Sequential' else [part])]


def stem(trunk, image):
    return blocks_of(trunk.stages[0])[0](trunk.stem(image)), None


def names(block):
    return ('attn', 'mlp') if hasattr(block, 'drop_path1') else ('mlp',)


def like(block):
    if hasattr(block, 'conv3_1x1'):
        return block.conv3_1x1.weight[:, 0, 0, 0]
    return (block.norm2 if hasattr(block, 'norm2') else block.norm).weight


def run(block, x, shape):                                               # channels last where there are linears
    return (block if hasattr(block, 'shortcut') else laid(block, block))(x)


def branches(block, shape):
    skip = block.shortcut if type(getattr(block, 'shortcut', None)).__name__ not in ('NoneType', 'Identity') else None
    if not hasattr(block, 'drop_path1'):
        return dict(mlp=Branch(None, front=block, skip=skip))
    attend = block.attn if hasattr(block, 'shortcut') else block._partition_attn
    return dict(attn=Branch(laid(block, lambda x: block.ls1(attend(block.norm1(x)))), block.drop_path1, skip),
                mlp=Branch(laid(block, lambda x: block.ls2(block.mlp(block.norm2(x)))), block.drop_path2))


def laid(block, run):
    return last(run) if type(block.mlp.fc1).__name__ == 'Linear' else run
