"""HiViT of mmpretrain: MLPs alone on the pieces of each patch (B, L, p, p, C), merged twice; then tokens (B, L, C).

`shape` is the patch grid, the size of the image and the trunk, whose positions stand behind the last merge.
"""
from .beit import ROLES, scaled  # noqa: F401 its layers have the names of timm's BEiT
from .family import Branch

CLASSES = ('mmpretrain.:HiViT',)
BLOCKS = ('mmpretrain.models.backbones.hivit:BlockWithRPE',)
NO_PROMPTS = 'its first stages have no attention for prompts to be read by'


def stages(trunk):
    ends = [i for i, block in enumerate(trunk.blocks) if hasattr(block, 'reduction')]
    return [list(trunk.blocks[i:j]) for i, j in zip([0, *(i + 1 for i in ends)], [*ends, len(trunk.blocks)])]


def merges(trunk):
    return dict(enumerate(block for block in trunk.blocks if hasattr(block, 'reduction')))


def taps(trunk):
    """The last block: the stock forward fails where more is to be given out."""
    return [(len(trunk.depths) - 1, trunk.num_main_blocks - 1)]


def stem(trunk, image):
    size = image.shape[-2:]
    return trunk.patch_embed(image), (*(side // trunk.patch_size for side in size), size, trunk)


def names(block):
    return ('mlp',) if block.attn is None else ('attn', 'mlp')


def branches(block, shape):
    index = True if shape[3].rpe else None
    return dict(attn=Branch(lambda x: scaled(block.gamma_1, block.attn(block.norm1(x), index)), block.drop_path),
                mlp=Branch(lambda x: scaled(block.gamma_2, block.mlp(block.norm2(x))), block.drop_path))


def merge(module, x, shape):
    x, trunk = module(x), shape[3]
    if x.shape[-1] < trunk.num_features:
        return x, shape
    x = x[..., 0, 0, :]
    return trunk.pos_drop(x + trunk.interpolate_pos_encoding(x, *shape[2]) if trunk.ape else x), shape


def emit(trunk, tap, x, shape):
    return x.transpose(1, 2).unflatten(2, shape[:2]).contiguous()
