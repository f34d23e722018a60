"""MaxViT, CoAtNet and kin of timm: maps (B, C, H, W); blocks of convolutions, of attention, or rows of both.

A row is several blocks, convolutions are one branch. A stage's first block pools; the very first is part of the stem.
A qkv layer lays q, k and v of a head side by side, so that each of these roles is all of it.
"""
from operator import attrgetter

from .family import Branch
from .role import Role
from .windows import last

CLASSES = ('timm.:MaxxVit',)
BLOCKS = tuple(f'timm.:{name}' for name in (
    'MbConvBlock', 'ConvNeXtBlock', 'TransformerBlock2d', 'PartitionAttentionCl', 'PartitionAttention2d',
    'ParallelPartitionAttention'))
ROWS = ('Sequential', 'MaxxVitBlock', 'ParallelMaxxVitBlock')
BLOCK = r'stages\.\d+\.blocks\.\d+\.'
ATTENTION = BLOCK + r'(attn_(block|grid)\.)?attn\.(attn_(block|grid)\.)?'
MLP = BLOCK + r'(attn(_block|_grid)?\.)?mlp\.'
QKV = Role(ATTENTION + 'qkv')
ROLES = dict(q=QKV, k=QKV, v=QKV, proj=Role(ATTENTION + 'proj'), fc1=Role(MLP + 'fc1'), fc2=Role(MLP + 'fc2'))
HEAD = r'head(\.(?!norm\.).*)?'                                         # its norm is the trunk's
NORMS = ('norm', 'head.norm')
AXIS = 1
INSIDE = True
IN_PLACE = r'.*\.se(_early)?\.fc1'                                      # by the activation behind it
size = attrgetter('img_size')                                           # of which windows and grids are fractions


def stages(trunk):
    (_, *first), *others = (blocks_of(stage.blocks) for stage in trunk.stages)
    return [first, *others]


def blocks_of(module):
    parts = module.children() if type(module).__name__ in ROWS else ()
    return [block for part in parts for block in blocks_of(part)] or [module]


def stem(trunk, image):
    return blocks_of(trunk.stages[0].blocks)[0](trunk.stem(image)), None


def names(block):
    return ('attn', 'mlp') if hasattr(block, 'drop_path1') else ('mlp',)


def like(block):
    return (block.conv3_1x1.weight[:, 0, 0, 0] if hasattr(block, 'conv3_1x1') else
            getattr(block, 'norm2' if hasattr(block, 'norm2') else 'norm').weight)


def branches(block, shape):
    skip = getattr(block, 'shortcut', None)
    if not hasattr(block, 'drop_path1'):
        return dict(mlp=Branch(None, front=block, skip=skip))
    laid = (lambda run: run) if type(block).__name__.endswith('2d') else last
    attend = block._partition_attn if skip is None else block.attn
    return dict(attn=Branch(laid(lambda x: block.ls1(attend(block.norm1(x)))), block.drop_path1, skip),
                mlp=Branch(laid(lambda x: block.ls2(block.mlp(block.norm2(x)))), block.drop_path2))
