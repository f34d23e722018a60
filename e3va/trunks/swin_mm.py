"""Swin of mmdet, mmsegmentation and mmpretrain: tokens (B, L, C) with their height and width beside them."""
from torch.nn import functional as F

from ..surgery import find, rebind
from .role import Role, branch, stock

CLASSES = ('mmdet.:SwinTransformer', 'mmseg.:SwinTransformer', 'mmpretrain.:SwinTransformer')
QKV = r'stages\.\d+\.blocks\.\d+\.attn\.w_msa\.qkv'
ROLES = dict(
    q=Role(QKV, 0, 3), k=Role(QKV, 1, 3), v=Role(QKV, 2, 3),
    proj=Role(r'stages\.\d+\.blocks\.\d+\.attn\.w_msa\.proj'),
    fc1=Role(r'stages\.\d+\.blocks\.\d+\.ffn\.layers\.0\.0'),
    fc2=Role(r'stages\.\d+\.blocks\.\d+\.ffn\.layers\.1'))
HEAD = None
NO_PROMPTS = None


def owns(trunk):
    return stock(trunk, CLASSES)


def out_norms(trunk):
    return [f'norm{i}' for i in trunk.out_indices]


def ENTRY(trunk):
    return 'forward'


def stages(trunk):
    return [list(stage.blocks) for stage in trunk.stages]


def merges(trunk):
    return {i: stage.downsample for i, stage in enumerate(trunk.stages) if stage.downsample is not None}


def taps(trunk):
    late = getattr(trunk, 'out_after_downsample', False)                # mmpretrain only
    return [(i, 'merged') if late and stage.downsample is not None else (i, len(stage.blocks) - 1)
            for i, stage in enumerate(trunk.stages) if i in trunk.out_indices]


def stem(trunk, image):
    x, shape = trunk.patch_embed(image)
    if trunk.use_abs_pos_embed:
        if hasattr(trunk, 'interpolate_mode'):                          # mmpretrain resizes the embedding to the image
            from mmpretrain.models.utils import resize_pos_embed
            x = x + resize_pos_embed(trunk.absolute_pos_embed, trunk.patch_resolution, shape,
                                     trunk.interpolate_mode, trunk.num_extra_tokens)
        else:
            x = x + trunk.absolute_pos_embed
    return trunk.drop_after_pos(x), shape


def attend(block, x, shape, tap='before'):
    f, moved = branch(lambda: block.attn(block.norm1(x), shape), block.attn.drop, tap)
    return f, x + moved


def feed(block, x, shape, tap='before'):
    # The feed-forward network adds its own identity: given zero, it returns the branch alone.
    f, moved = branch(lambda: block.ffn(block.norm2(x), identity=0.), block.ffn.dropout_layer, tap)
    return f, x + moved


def merge(module, x, shape):
    return module(x, shape)


def emit(trunk, tap, x, shape):
    x = getattr(trunk, f'norm{tap[0]}')(x)
    return x.view(-1, *shape, x.shape[-1]).permute(0, 3, 1, 2).contiguous()


def pack(trunk, outs):
    return tuple(outs) if type(trunk).__module__.startswith('mmpretrain.') else outs


def fuse_attention(trunk):
    """Let the blocks attend by torch's fused kernel, which writes no (windows, heads, tokens, tokens) matrix down."""
    for module in find(trunk, r'stages\.\d+\.blocks\.\d+\.attn\.w_msa').values():
        if type(module).__name__ == 'WindowMSA':                        # not mmpretrain's V2, which compares angles
            rebind(module, 'forward', fused_attention)


def fused_attention(attention, x, mask=None):
    """The stock `WindowMSA.forward`: x (windows, tokens, C), mask (windows of an image, tokens, tokens)."""
    windows, tokens, width = x.shape
    heads = attention.num_heads
    q, k, v = attention.qkv(x).view(windows, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    bias = attention.relative_position_bias_table[attention.relative_position_index.view(-1)]
    bias = bias.view(1, tokens, tokens, heads).permute(0, 3, 1, 2).to(q.dtype)
    if mask is not None:                                                # the same for each image of the batch
        bias = (bias + mask[:, None].to(q.dtype)).repeat(windows // len(mask), 1, 1, 1)
    dropout = attention.attn_drop.p if attention.attn_drop.training else 0.
    out = F.scaled_dot_product_attention(q, k, v, bias.expand(windows, -1, -1, -1), dropout, scale=attention.scale)
    return attention.proj_drop(attention.proj(out.transpose(1, 2).reshape(windows, tokens, width)))
