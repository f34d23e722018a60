"""MiT of mmsegmentation, PVT and PVT v2 of mmdet: tokens (B, L, C); a stage is (embedding, blocks, norm).

`shape` is the grid with this stage and the later ones beside it. torch computes the attention past any layer.
"""
from .family import Branch
from .role import Role

CLASSES = ('mmseg.:MixVisionTransformer', 'mmdet.:PyramidVisionTransformer')
BLOCKS = ('mmseg.models.backbones.mit:TransformerEncoderLayer', 'mmdet.:PVTEncoderLayer')
BLOCK = r'layers\.\d+\.1\.\d+\.'
MHA = BLOCK + r'attn\.attn'                                            # LoRA alone goes inside
ROLES = dict(q=Role(MHA, 0, 3), k=Role(MHA, 1, 3), v=Role(MHA, 2, 3),
             fc1=Role(BLOCK + r'ffn\.layers\.0'), fc2=Role(BLOCK + r'ffn\.layers\.[34]'))
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
    for position in (module for module in later[0][1] if not hasattr(module, 'attn')):
        x = position(x, size)
    return x, (*size, later)


def branches(block, shape):
    return dict(attn=Branch.around(lambda x: block.attn(block.norm1(x), shape[:2], 0.), block.attn.dropout_layer),
                mlp=Branch.around(lambda x: block.ffn(block.norm2(x), shape[:2], 0.), block.ffn.dropout_layer))


def merge(module, x, shape):
    return embed(module, emit(None, None, x, shape), shape[2][1:])


def out_norms(trunk):
    last = len(trunk.layers) - 1                                        # the others lead to the next stage too
    return [f'layers.{last}.2'] if last in trunk.out_indices and [*trunk.layers[last][2].parameters()] else []


def idle_norms(trunk):
    return [f'layers.{i}' for i in range(max(trunk.out_indices) + 1, len(trunk.layers))]


def emit(trunk, tap, x, shape):
    return shape[2][0][2](x).transpose(1, 2).unflatten(2, shape[:2]).contiguous()


def pack(trunk, outs):
    return outs
