"""Swin V2 of mmpretrain: tokens (B, L, C), norms behind the branches and their DropPath, merges at a stage's start.

The largest have a norm more on the stream behind every few blocks: what it changes counts as output of the MLP.
"""
from .role import branch
from .swin_mm import ROLES, emit, merge, out_norms, pack, stages, stem  # noqa: F401 in these it is the first Swin
from .swinv2_timm import NO_PROMPTS  # noqa: F401 what timm's says of it

CLASSES = ('mmpretrain.:SwinTransformerV2',)
BLOCKS = ('mmpretrain.:SwinBlockV2',)
IN_PLACE = r'stages\.\d+\.blocks\.\d+\.attn\.w_msa\.cpb_mlp\.0'          # by the ReLU behind it


def merges(trunk):
    return {i: stage.downsample for i, stage in enumerate(trunk.stages[1:])}


def attend(block, x, shape, tap='before'):
    f, moved = normed(block.norm1, *branch(lambda: block.attn(x, shape), block.attn.drop, tap))
    return f, x + moved


def feed(block, x, shape, tap='before'):
    f, moved = normed(block.norm2, *branch(lambda: block.ffn(x), block.ffn.dropout_layer, tap))
    if not block.extra_norm:
        return f, x + moved
    behind = block.norm3(x + moved)
    return behind - x if tap else None, behind


def normed(norm, f, moved):
    """A branch's two outputs, which are one where nothing was dropped."""
    out = norm(moved)
    return out if f is moved else norm(f), out
