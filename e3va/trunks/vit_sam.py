"""ViT of SAM, mmpretrain's `ViTSAM`: maps (B, H, W, C) all through, attention in windows or whole, and a neck.

The neck, `channel_reduction`, stands behind each output; it came with the weights and belongs to the trunk.
"""
import re

import torch
from torch.nn import functional as F

from ..surgery import find, rebind
from .role import Role, stock
from .vit_mm import ENTRY, feed, merge, merges, pack, stages  # noqa: F401 in these it is the plain ViT

CLASSES = ('mmpretrain.:ViTSAM',)
QKV = r'layers\.\d+\.attn\.qkv'
ROLES = dict(
    q=Role(QKV, 0, 3), k=Role(QKV, 1, 3), v=Role(QKV, 2, 3),
    proj=Role(r'layers\.\d+\.attn\.proj'),
    fc1=Role(r'layers\.\d+\.ffn\.layers\.0\.0'),
    fc2=Role(r'layers\.\d+\.ffn\.layers\.1'))
HEAD = None
NO_PROMPTS = 'its attention takes maps and their windows, which have no place for further tokens'

NAMES = (                                                               # in a public checkpoint, in ours
    (r'image_encoder\.pos_embed', r'backbone.pos_embed'),
    (r'image_encoder\.patch_embed\.proj\.(\w+)', r'backbone.patch_embed.projection.\1'),
    (r'image_encoder\.blocks\.(\d+)\.norm([12])\.(\w+)', r'backbone.layers.\1.ln\2.\3'),
    (r'image_encoder\.blocks\.(\d+)\.attn\.(.+)', r'backbone.layers.\1.attn.\2'),
    (r'image_encoder\.blocks\.(\d+)\.mlp\.lin1\.(\w+)', r'backbone.layers.\1.ffn.layers.0.0.\2'),
    (r'image_encoder\.blocks\.(\d+)\.mlp\.lin2\.(\w+)', r'backbone.layers.\1.ffn.layers.1.\2'),
    (r'image_encoder\.neck\.(.+)', r'backbone.channel_reduction.\1'),
)


def own_names(state):
    """A state dict of a public SAM (`image_encoder.*`) under OpenMMLab's names (`backbone.*`); other entries stay."""
    renamed = {}
    for name, value in state.items():
        matches = ((re.fullmatch(pattern, name), own) for pattern, own in NAMES)
        renamed[next((match.expand(own) for match, own in matches if match), name)] = value
    return renamed


def owns(trunk):
    return stock(trunk, CLASSES)


def out_norms(trunk):
    return []                                                           # those of the neck are no new ones


def taps(trunk):
    return [(0, i) for i in range(len(trunk.layers)) if i in trunk.out_indices]


def stem(trunk, image):
    from mmpretrain.models.utils import resize_pos_embed
    x, shape = trunk.patch_embed(image)
    x = x.unflatten(1, shape)
    if trunk.use_abs_pos:
        places = resize_pos_embed(trunk.pos_embed.flatten(1, 2), trunk.patch_resolution, shape,
                                  mode=trunk.interpolate_mode, num_extra_tokens=0)
        x = trunk.drop_after_pos(x + places.view(1, *shape, trunk.embed_dims))
    return x, shape


def attend(block, x, shape, tap='before'):
    """The stock block has no DropPath here: it is the same before and after."""
    from mmpretrain.models.backbones.vit_sam import window_partition, window_unpartition
    f = block.norm1(x)
    if block.window_size > 0:
        f, padded = window_partition(f, block.window_size)
        f = window_unpartition(block.attn(f), block.window_size, padded, shape)
    else:
        f = block.attn(f)
    return f, x + f


def emit(trunk, tap, x, shape):
    x = x.permute(0, 3, 1, 2)
    return trunk._format_output(trunk.channel_reduction(x) if trunk.out_channels > 0 else x)


def fuse_attention(trunk):
    """Let the blocks attend by torch's fused kernel: the one (tokens, tokens) matrix left is the bias."""
    for module in find(trunk, r'layers\.\d+\.attn').values():
        rebind(module, 'forward', fused_attention)


def fused_attention(attention, x):
    """The stock `Attention.forward`, for maps or windows (B, H, W, C)."""
    from mmpretrain.models.backbones.vit_sam import get_rel_pos
    height, width = x.shape[1:3]
    q, k, v = attention.qkv(x).flatten(1, 2).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    bias = None
    if attention.use_rel_pos:
        at = q.unflatten(2, (height, width))
        rows = torch.einsum('bnhwc,hkc->bnhwk', at, get_rel_pos(height, height, attention.rel_pos_h))
        columns = torch.einsum('bnhwc,wkc->bnhwk', at, get_rel_pos(width, width, attention.rel_pos_w))
        bias = (rows[..., None] + columns[..., None, :]).flatten(-2).flatten(2, 3).to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, bias, scale=attention.scale)
    return attention.proj(out.transpose(1, 2).reshape(x.shape))
