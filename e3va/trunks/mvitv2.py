"""MViT v2 of timm: tokens (B, L, C), a class token first; a stage begins with a block that pools and widens.

`shape` is a dict of each block's grids, in front of it and behind. Not read is the form that widens in an MLP
(mvitv2_large): its blocks have no one width.
"""
import torch

from .family import Branch
from .role import Role, stock

CLASSES = ('timm.:MultiScaleVit',)
BLOCKS = ('timm.:MultiScaleBlock',)
BLOCK = r'stages\.\d+\.blocks\.\d+\.'
QKV = BLOCK + r'attn\.qkv'
ROLES = dict(
    q=Role(QKV, 0, 3), k=Role(QKV, 1, 3), v=Role(QKV, 2, 3),
    proj=Role(BLOCK + r'attn\.proj'), fc1=Role(BLOCK + r'mlp\.fc1'), fc2=Role(BLOCK + r'mlp\.fc2'))
INSIDE = True


def owns(trunk):
    return stock(trunk, CLASSES, 'forward_features') and all(
        stock(block, BLOCKS) and block.shortcut_proj_mlp is None for stage in trunk.stages for block in stage.blocks)


def size(trunk):
    table = getattr(trunk.stages[0].blocks[0].attn, 'rel_pos_h', None)          # of positions in one grid
    return None if table is None else tuple((len(table) + 1) // 2 * step for step in trunk.patch_embed.proj.stride)


def stem(trunk, image):
    x, grid = trunk.patch_embed(image)
    grids = {}
    if trunk.cls_token is not None:
        x = torch.cat((trunk.cls_token.expand(len(x), -1, -1), x), dim=1)
    for block in (block for stage in trunk.stages for block in stage.blocks):
        pool = block.shortcut_pool_attn
        behind = grid if pool is None else [-(-length // step) for length, step in zip(grid, pool.stride)]
        grids[id(block)], grid = (tuple(grid), tuple(behind)), behind
    return x if trunk.pos_embed is None else x + trunk.pos_embed, grids


def grid(block, shape):
    return shape[id(block)][1]


def run(block, x, shape):
    return block(x, shape[id(block)][0])[0]


def branches(block, shape):
    size, proj = shape[id(block)][0], block.shortcut_proj_attn
    skip = None if proj is None and block.shortcut_pool_attn is None else (
        lambda x: block._shortcut_pool(x if proj is None else proj(block.norm1(x)), size))
    return dict(attn=Branch(lambda x: block.attn(block.norm1(x), size)[0], block.drop_path1, skip),
                mlp=Branch(lambda x: block.mlp(block.norm2(x)), block.drop_path2))


def spread(trunk, x, shape):
    return x[:, trunk.num_prefix_tokens:].unflatten(1, shape)
