"""Eva of timm (EVA-02, DINOv3's ViTs, PE, the rope ViTs): tokens (B, L, C), prefix tokens first.

`shape` is the patch grid with the rotary table beside it, of which every block may have its own (`rope_mixed`).
"""
from .family import Branch
from .role import Role

CLASSES = ('timm.:Eva',)
BLOCKS = ('timm.:EvaBlock', 'timm.:EvaBlockPostNorm')
QKV = r'blocks\.\d+\.attn\.qkv'
ROLES = dict(
    q=(Role(QKV, 0, 3), Role(r'blocks\.\d+\.attn\.q_proj')),
    k=(Role(QKV, 1, 3), Role(r'blocks\.\d+\.attn\.k_proj')),
    v=(Role(QKV, 2, 3), Role(r'blocks\.\d+\.attn\.v_proj')),
    proj=Role(r'blocks\.\d+\.attn\.proj'),
    fc1=Role(r'blocks\.\d+\.mlp\.(fc1|fc1_g|fc1_x)'),
    fc2=Role(r'blocks\.\d+\.mlp\.fc2'))
SIZES = dict(dynamic_img_size=True)
NO_PROMPTS = None


def stem(trunk, image):
    size = trunk.patch_embed.dynamic_feat_size(image.shape[-2:])
    x, rope = trunk._pos_embed(trunk.patch_embed(image))
    if getattr(trunk, 'rope_mixed', False) and rope is not None:
        rope = dict(zip(map(id, trunk.blocks), rope))
    return trunk.norm_pre(x), (*size, rope)


def rope_of(block, shape):
    return shape[2][id(block)] if isinstance(shape[2], dict) else shape[2]


def run(block, x, shape):
    return block(x, rope=rope_of(block, shape))


def branches(block, shape):
    rope = rope_of(block, shape)
    if type(block).__name__ == 'EvaBlockPostNorm':
        return dict(attn=Branch(lambda x: block.norm1(block.attn(x, rope=rope)), block.drop_path1),
                    mlp=Branch(lambda x: block.norm2(block.mlp(x)), block.drop_path2))
    return dict(attn=Branch(lambda x: scaled(block.gamma_1, block.attn(block.norm1(x), rope=rope)), block.drop_path1),
                mlp=Branch(lambda x: scaled(block.gamma_2, block.mlp(block.norm2(x))), block.drop_path2))


def scaled(gamma, f):
    return f if gamma is None else gamma * f


def spread(trunk, x, shape):
    return x[:, trunk.num_prefix_tokens:].unflatten(1, shape[:2])
