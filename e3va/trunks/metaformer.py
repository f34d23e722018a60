"""MetaFormers of timm (PoolFormer and its V2, ConvFormer, CAFormer): maps (B, C, H, W); tokens where a stage attends.

The token mixer is what is called attention elsewhere. Blocks of the late stages scale the stream itself, and layer
scale stands behind DropPath. Where no stage attends, what others do in the attention falls to the mixer's pointwise
convolutions, in PoolFormers to those of the MLP; linear layers are only in stages that attend.
"""
from .family import Branch
from .role import Role

CLASSES = ('timm.:MetaFormer',)
BLOCKS = ('timm.:MetaFormerBlock',)
BLOCK = r'stages\.\d+\.blocks\.\d+\.'
FC1, FC2 = Role(BLOCK + r'mlp\.fc1'), Role(BLOCK + r'mlp\.fc2')
INTO = (FC1, Role(BLOCK + r'token_mixer\.pwconv1'))                     # of what a trunk has the last counts
OUT = (FC2, Role(BLOCK + r'token_mixer\.pwconv2'), Role(BLOCK + r'token_mixer\.proj'))
Q, K, V = (Role(BLOCK + r'token_mixer\.qkv', i, 3) for i in range(3))
ROLES = dict(fc1=FC1, fc2=FC2, q=(*INTO, Q), k=(*INTO, K), v=(*INTO, V), proj=OUT)
HEAD = r'head(\.(?!norm\.).*)?'                                         # its norm is the trunk's
NORMS = ('head.norm',)
AXIS = 1


def merges(trunk):
    return {i - 1: stage.downsample for i, stage in enumerate(trunk.stages) if i > 0}


def stem(trunk, image):
    return trunk.stages[0].downsample(trunk.stem(image)), None


def run(block, x, shape):
    return laid(block, block)(x)


def branches(block, shape):
    return dict(attn=branch(block, lambda x: block.token_mixer(block.norm1(x)), '1'),
                mlp=branch(block, lambda x: block.mlp(block.norm2(x)), '2'))


def branch(block, run, i):
    drop, scale, skip = (getattr(block, name + i) for name in ('drop_path', 'layer_scale', 'res_scale'))
    return Branch(laid(block, run), laid(block, drop), laid(block, skip) if hasattr(skip, 'scale') else None,
                  scale=laid(block, scale) if hasattr(scale, 'scale') else None)


def laid(block, run):
    """run in the block's own layout: tokens where it attends, else maps."""
    if type(block.token_mixer).__name__ != 'Attention':
        return run
    return lambda x: run(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
