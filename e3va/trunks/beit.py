"""BEiT of timm (v1, v2, and what is fine-tuned in its form): tokens (B, L, C), the class token first.

`shape` is the patch grid with the bias of relative positions beside it that all blocks share, or None: they have their
own tables, or none. Either way the bias is one for each pair of tokens, so the size of the images is fixed.
"""
import torch

from .family import Branch
from .role import Role

CLASSES = ('timm.:Beit',)
BLOCKS = ('timm.:Block',)
QKV = r'blocks\.\d+\.attn\.qkv'
ROLES = dict(
    q=Role(QKV, 0, 3), k=Role(QKV, 1, 3), v=Role(QKV, 2, 3),
    proj=Role(r'blocks\.\d+\.attn\.proj'),
    fc1=Role(r'blocks\.\d+\.mlp\.(fc1|fc1_g|fc1_x)'),
    fc2=Role(r'blocks\.\d+\.mlp\.fc2'))
NO_PROMPTS = 'its attention has a bias for each pair of positions, and prompts have none'


def stem(trunk, image):
    size = trunk.patch_embed.dynamic_feat_size(image.shape[-2:])
    x = trunk.patch_embed(image)
    x = torch.cat((trunk.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
    if trunk.pos_embed is not None:
        x = x + trunk.pos_embed
    return trunk.pos_drop(x), (*size, None if trunk.rel_pos_bias is None else trunk.rel_pos_bias())


def run(block, x, shape):
    return block(x, shared_rel_pos_bias=shape[2])


def branches(block, shape):
    return dict(attn=Branch(lambda x: scaled(block.gamma_1, block.attn(block.norm1(x), shape[2])), block.drop_path1),
                mlp=Branch(lambda x: scaled(block.gamma_2, block.mlp(block.norm2(x))), block.drop_path2))


def scaled(gamma, f):
    return f if gamma is None else gamma * f


def spread(trunk, x, shape):
    return x[:, trunk.num_prefix_tokens:].unflatten(1, shape[:2])
