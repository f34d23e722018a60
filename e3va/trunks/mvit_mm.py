"""MViT v2 of mmpretrain, but for large, whose blocks have no one width: tokens (B, L, C), pooled where a stage begins.

`shape` is {block: its grid in front, its grid behind, the norm on the stream in front of it, of what was given out}.
"""
from torch import nn

from .family import Branch
from .hiera import ROLES  # noqa: F401 its layers have the names of timm's Hiera
from .role import stock

CLASSES = ('mmpretrain.:MViT',)
INSIDE = True


def owns(trunk):
    return stock(trunk, CLASSES) and all(block.proj is None or block.dim_mul_in_attention for block in trunk.blocks)


def stages(trunk):
    starts = [0, *trunk.downscale_indices, trunk.num_layers]
    return [list(trunk.blocks[i:j]) for i, j in zip(starts, starts[1:])]


def indices(trunk):
    return trunk.out_scales


def out_norms(trunk):
    return [f'norm{max(trunk.out_scales)}']                             # the others lead to the next stage too


def stem(trunk, image):
    x, size = trunk.patch_embed(image)
    if trunk.use_abs_pos_embed:
        from mmpretrain.models.utils import resize_pos_embed
        x = x + resize_pos_embed(trunk.pos_embed, trunk.patch_resolution, size, trunk.interpolate_mode, 0)
    shape, size = {}, tuple(size)
    for i, block in enumerate(trunk.blocks):
        norm = getattr(trunk, f'norm{trunk.stage_indices.get(i - 1)}', nn.Identity())
        behind = size if block.pool_skip is None else tuple(-(-side // block.pool_skip.stride) for side in size)
        shape[block], size = (size, behind, norm), behind
    return x, shape


def grid(block, shape):
    return shape[block][1]


def branches(block, shape):
    size, _, norm = shape[block]
    def skip(x):
        x = norm(x) if block.proj is None else block.proj(block.norm1(norm(x)))
        return block.pool_skip(x.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)
    return dict(attn=Branch(lambda x: block.attn(block.norm1(norm(x)), size)[0], block.drop_path,
                            block.pool_skip and skip), mlp=Branch(lambda x: block.mlp(block.norm2(x)), block.drop_path))


def emit(trunk, tap, x, shape):
    x = getattr(trunk, f'norm{tap[0]}')(x)
    return x.transpose(1, 2).unflatten(2, grid(stages(trunk)[tap[0]][-1], shape)).contiguous()
