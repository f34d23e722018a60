"""Plain ViT of timm (DeiT, DINOv2, CLIP and the like too): tokens (B, L, C), prefix tokens first."""
from .family import Branch
from .role import Role

CLASSES = ('timm.:VisionTransformer',)
BLOCKS = ('timm.:Block',)
QKV = r'blocks\.\d+\.attn\.qkv'
ROLES = dict(
    q=Role(QKV, 0, 3), k=Role(QKV, 1, 3), v=Role(QKV, 2, 3),
    proj=Role(r'blocks\.\d+\.attn\.proj'),
    fc1=Role(r'blocks\.\d+\.mlp\.(fc1|w12)'),
    fc2=Role(r'blocks\.\d+\.mlp\.(fc2|w3)'))
HEAD = r'(head|head_dist)(\..*)?'
SIZES = dict(dynamic_img_size=True)
NO_PROMPTS = None


def stem(trunk, image):
    shape = trunk.patch_embed.dynamic_feat_size(image.shape[-2:])
    return trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(image)))), shape


def run(block, x, shape):
    return block(x)


def branches(block, shape):
    return dict(attn=Branch(lambda x: block.ls1(block.attn(block.norm1(x))), block.drop_path1),
                mlp=Branch(lambda x: block.ls2(block.mlp(block.norm2(x))), block.drop_path2))


def spread(trunk, x, shape):
    return x[:, trunk.num_prefix_tokens:].unflatten(1, shape)
