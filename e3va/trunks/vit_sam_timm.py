"""ViT of SAM in timm: maps (B, H, W, C) all through, attention in windows or whole, and a neck at the end."""
from functools import partial

from .family import Branch
from .role import Role
from .windows import windows

CLASSES = ('timm.:VisionTransformerSAM',)
BLOCKS = ('timm.models.vision_transformer_sam:Block',)
QKV = r'blocks\.\d+\.attn\.qkv'
ROLES = dict(
    q=Role(QKV, 0, 3), k=Role(QKV, 1, 3), v=Role(QKV, 2, 3),
    proj=Role(r'blocks\.\d+\.attn\.proj'),
    fc1=Role(r'blocks\.\d+\.mlp\.fc1'),
    fc2=Role(r'blocks\.\d+\.mlp\.fc2'))
NO_PROMPTS = 'its attention takes maps and their windows, which have no place for further tokens'


def size(trunk):
    """Rotary tables are made for one grid; tables of relative positions are resized."""
    return None if trunk.rope_global is None else tuple(trunk.patch_embed.img_size)


def stem(trunk, image):
    from timm.layers import resample_abs_pos_embed_nhwc
    x = trunk.patch_embed(image)
    if trunk.pos_embed is not None:
        x = x + resample_abs_pos_embed_nhwc(trunk.pos_embed, x.shape[1:3])
    return trunk.norm_pre(trunk.patch_drop(trunk.pos_drop(x))), None


def run(block, x, shape):
    return block(x)


def branches(block, shape):
    drop, size = block.drop_path1, block.window_size
    if size > 0 and drop.training and hasattr(drop, 'drop_prob'):       # the stock block draws it for each window
        drop = partial(windows, size, drop)
    return dict(attn=Branch(lambda x: windows(size, lambda x: block.ls1(block.attn(x)), block.norm1(x)), drop),
                mlp=Branch(lambda x: block.ls2(block.mlp(block.norm2(x))), block.drop_path2))


def out_norms(trunk):
    """The neck belongs to the weights; where it is one norm alone, that is the last one."""
    if hasattr(trunk, 'out_indices'):
        return [f'norm{i}' for i in trunk.out_indices]
    return ['neck'] if hasattr(trunk.neck, 'weight') else []


def end(trunk, x):
    return trunk.neck(x.permute(0, 3, 1, 2))
