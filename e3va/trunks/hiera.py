"""Hiera of timm: tokens (B, L, C) in the order in which they are pooled; a stage begins with a block that pools.

That block changes the width too: its attention is added to a projection of the normed tokens, pooled. Windows are runs
of tokens ("mask units"), so that the images have one size.
"""
import torch

from .family import Branch
from .role import Role, stock

CLASSES = ('timm.:Hiera',)
BLOCKS = ('timm.:HieraBlock',)
QKV = r'blocks\.\d+\.attn\.qkv'
ROLES = dict(
    q=Role(QKV, 0, 3), k=Role(QKV, 1, 3), v=Role(QKV, 2, 3),
    proj=Role(r'blocks\.\d+\.attn\.proj'), fc1=Role(r'blocks\.\d+\.mlp\.fc1'), fc2=Role(r'blocks\.\d+\.mlp\.fc2'))
HEAD = r'head(\.(?!norm\.).*)?'                                         # its norm is the trunk's
NORMS = ('head.norm',)
INSIDE = True


def owns(trunk):
    """Not where it drops patches in training, for which it goes by masks."""
    return stock(trunk, CLASSES, 'forward_features') and stock(trunk.blocks[0], BLOCKS) and not trunk.patch_drop_rate


def size(trunk):
    return tuple(tokens * stride for tokens, stride in zip(trunk.tokens_spatial_shape, trunk.patch_stride))


def stages(trunk):
    starts = [0] + [end + 1 for end in trunk.stage_ends]
    return [list(trunk.blocks[i:j]) for i, j in zip(starts, starts[1:]) if i < len(trunk.blocks)]


def stem(trunk, image):
    return trunk.unroll(trunk._pos_embed(trunk.patch_embed(image))), None


def run(block, x, shape):
    return block(x)


def branches(block, shape):
    return dict(attn=Branch(lambda x: block.ls1(block.attn(block.norm1(x))), block.drop_path1,
                            (lambda x: pooled(block, x)) if block.do_expand else None),
                mlp=Branch(lambda x: block.ls2(block.mlp(block.norm2(x))), block.drop_path2))


def pooled(block, x):
    parts = (x if block.proj is None else block.proj(block.norm1(x))).unflatten(1, (block.attn.q_stride, -1))
    return parts.amax(1) if block.proj is not None else torch.cat([parts.amax(1), parts.mean(1)], -1)


def emit(trunk, tap, x, shape):
    if not hasattr(trunk, 'out_indices'):
        return x
    x = trunk.reroll(x, trunk.stage_ends[tap[0]])
    return getattr(trunk, f'norm{tap[0]}')(x).permute(0, 3, 1, 2).contiguous()
