"""BEiT of mmpretrain and mmsegmentation, and the latter's MAE: tokens (B, L, C), the class token first.

`shape` is the patch grid; in mmpretrain with the bias beside it that all blocks share, or None. The bias is one for
each pair of tokens, so that with it the size of the images is fixed.
"""
import torch

from .beit import NO_PROMPTS, scaled  # noqa: F401 what timm's says of it
from .role import branch
from .vit_mm import final_norm, idle_norms, of_mmseg, out_norms, stages  # noqa: F401 in these it is the plain ViT
from .vit_sam import ROLES  # noqa: F401 the layers have the same names

CLASSES = ('mmpretrain.:BEiTViT', 'mmseg.:BEiT', 'mmseg.:MAE')
BLOCKS = ('mmpretrain.:BEiTTransformerEncoderLayer', 'mmseg.:BEiTTransformerEncoderLayer')


def stem(trunk, image):
    x, size = trunk.patch_embed(image)
    if trunk.cls_token is not None:
        x = torch.cat((trunk.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
    if of_mmseg(trunk):
        return x + trunk.pos_embed if hasattr(trunk, 'pos_embed') else x, size
    if trunk.pos_embed is not None:
        x = x + trunk.resize_pos_embed(trunk.pos_embed, trunk.patch_resolution, size, mode=trunk.interpolate_mode,
                                       num_extra_tokens=trunk.num_extra_tokens)
    return trunk.drop_after_pos(x), (*size, None if trunk.rel_pos_bias is None else trunk.rel_pos_bias())


def attend(block, x, shape, tap='before'):
    f = scaled(block.gamma_1, block.attn(block.norm1(x), *shape[2:]))
    moved = block.drop_path(f)
    return moved if tap == 'after' else f, x + moved


def feed(block, x, shape, tap='before'):
    """In mmpretrain the MLP has a DropPath of its own, in front of the layer scale and the block's."""
    f, dropped = branch(lambda: block.ffn(block.norm2(x)), block.ffn.dropout_layer, tap)
    moved = block.drop_path(scaled(block.gamma_2, dropped))
    return moved if tap == 'after' else scaled(block.gamma_2, f), x + moved


def emit(trunk, tap, x, shape):
    if tap[1] == len(trunk.layers) - 1 and trunk.final_norm:
        x = getattr(trunk, final_norm(trunk))(x)
    if not of_mmseg(trunk):
        return trunk._format_output(x, shape[:2])
    return x[:, 1:].unflatten(1, shape[:2]).permute(0, 3, 1, 2).contiguous()
