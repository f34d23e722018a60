"""MiT of mmsegmentation (SegFormer), PVT and PVT v2 of mmdet: tokens (B, L, C); a stage is embedding, blocks, norm.

`shape` is the grid with this stage and the later ones beside it. Attention is torch's MultiheadAttention, which reads
its weights past any layer in their place, and the MLPs are convolutions of 1x1.
"""
from .family import Branch
from .role import Role, undropped

CLASSES = ('mmseg.:MixVisionTransformer', 'mmdet.:PyramidVisionTransformer')
BLOCKS = ('mmseg.models.backbones.mit:TransformerEncoderLayer', 'mmdet.:PVTEncoderLayer')
BLOCK = r'layers\.\d+\.1\.\d+\.'
ROLES = dict(fc1=Role(BLOCK + r'ffn\.layers\.0'), fc2=Role(BLOCK + r'ffn\.layers\.[34]'))
NO_PROMPTS = 'its keys are pooled from a map, in which prompts have no place'


def stages(trunk):
    return [[block for block in stage[1] if hasattr(block, 'attn')] for stage in trunk.layers]


def merges(trunk):
    return {i: trunk.layers[i + 1][0] for i in range(len(trunk.layers) - 1)}


def stem(trunk, image):
    return embed(trunk.layers[0][0], image, list(trunk.layers))


def embed(module, image, later):
    """Tokens of an image or a map, with the position embedding that a stage of PVT has in front of its blocks."""
    x, size = module(image)
    for position in later[0][1]:
        if not hasattr(position, 'attn'):
            x = position(x, size)
    return x, (*size, later)


def branches(block, shape):
    drops = block.attn.dropout_layer, block.ffn.dropout_layer           # either adds its own identity, here zero
    return dict(
        attn=Branch(undropped(lambda x: block.attn(block.norm1(x), shape[:2], identity=0.), drops[0]), drops[0]),
        mlp=Branch(undropped(lambda x: block.ffn(block.norm2(x), shape[:2], identity=0.), drops[1]), drops[1]))


def ended(x, shape):
    """The map (B, C, H, W) that a stage gives out."""
    return shape[2][0][2](x).transpose(1, 2).unflatten(2, shape[:2]).contiguous()


def merge(module, x, shape):
    return embed(module, ended(x, shape), shape[2][1:])


def out_norms(trunk):
    """Not those that lead to the next stage too: they came with the weights, and the frozen trunk reads them."""
    last = len(trunk.layers) - 1
    return [f'layers.{last}.2'] if last in trunk.out_indices and [*trunk.layers[last][2].parameters()] else []


def idle_norms(trunk):
    return [f'layers.{i}' for i in range(max(trunk.out_indices) + 1, len(trunk.layers))]


def emit(trunk, tap, x, shape):
    return ended(x, shape)


def pack(trunk, outs):
    return outs
