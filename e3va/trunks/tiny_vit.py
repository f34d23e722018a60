"""TinyViT of timm: maps (B, C, H, W); inverted bottlenecks in the first stage, then attention in windows.

A bottleneck ends in an activation behind its sum, and a convolution stands between the attention and the MLP of the
other blocks: what these do to the stream counts as output of the branch that they precede.

The outputs of a qkv layer lie q, k, v of the first head, q, k, v of the second, so that the three are no slices: what
is said of one of these roles falls to the whole layer.
"""
from .family import Branch
from .role import Role
from .windows import last, windows_of_tokens

CLASSES = ('timm.:TinyVit',)
BLOCKS = ('timm.:TinyVitBlock', 'timm.models.tiny_vit:MBConv')
BLOCK = r'stages\.\d+\.blocks\.\d+\.'
QKV = Role(BLOCK + r'attn\.qkv')
ROLES = dict(q=QKV, k=QKV, v=QKV, proj=Role(BLOCK + r'attn\.proj'),
             fc1=Role(BLOCK + r'mlp\.fc1'), fc2=Role(BLOCK + r'mlp\.fc2'))
HEAD = r'head(\.(?!norm\.).*)?'                                         # its norm is the trunk's
NORMS = ('head.norm',)
AXIS = 1
IN_PLACE = r'stages\.0\.blocks\.\d+\.conv3\.bn'                         # by the sum
NO_PROMPTS = 'its attention is biased by pairs of positions in windows, where prompts have none'


def merges(trunk):
    return {i - 1: stage.downsample for i, stage in enumerate(trunk.stages) if i > 0}


def stem(trunk, image):
    return trunk.patch_embed(image), None


def names(block):
    return ('attn', 'mlp') if hasattr(block, 'attn') else ('mlp',)


def like(block):
    return (block.local_conv if hasattr(block, 'attn') else block.conv3).bn.weight


def run(block, x, shape):
    return block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if hasattr(block, 'attn') else block(x)


def branches(block, shape):
    if not hasattr(block, 'attn'):
        return dict(mlp=Branch(None, front=block))
    return dict(attn=Branch(last(lambda x: windows_of_tokens(block.window_size, block.attn, x)), block.drop_path1),
                mlp=Branch(last(block.mlp), block.drop_path2, front=block.local_conv))
