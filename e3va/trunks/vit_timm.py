"""Plain ViT of timm (DeiT, DINOv2, CLIP and the like too): tokens (B, L, C), prefix tokens first."""
from .role import Role, stock

CLASSES = ('timm.:VisionTransformer',)
BLOCKS = ('timm.:Block',)
QKV = r'blocks\.\d+\.attn\.qkv'
ROLES = dict(
    q=Role(QKV, 0, 3), k=Role(QKV, 1, 3), v=Role(QKV, 2, 3),
    proj=Role(r'blocks\.\d+\.attn\.proj'),
    fc1=Role(r'blocks\.\d+\.mlp\.(fc1|w12)'),
    fc2=Role(r'blocks\.\d+\.mlp\.(fc2|w3)'))
HEAD = r'(head|head_dist)(\..*)?'
BRANCHES = ('attn', 'mlp')
AXIS = -1


def owns(trunk):
    return stock(trunk, CLASSES, 'forward_features') and all(stock(block, BLOCKS) for block in trunk.blocks)


def out_norms(trunk):
    if ENTRY(trunk) == 'forward':
        return [f'norm{i}' for i in trunk.out_indices]
    return [name for name in ('norm', 'fc_norm') if any(True for _ in getattr(trunk, name).parameters())]


def ENTRY(trunk):
    """TimmTrunk gives maps from `forward`; plain timm models put their head behind `forward_features`."""
    return 'forward' if hasattr(trunk, 'out_indices') else 'forward_features'


def stages(trunk):
    return [list(trunk.blocks)]


def merges(trunk):
    return {}


def taps(trunk):
    last = len(trunk.blocks) - 1
    return [(0, i) for i in range(last + 1) if i in (trunk.out_indices if ENTRY(trunk) == 'forward' else [last])]


def stem(trunk, image):
    shape = trunk.patch_embed.dynamic_feat_size(image.shape[-2:])
    return trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(image)))), shape


def attend(block, x, shape, tap='before'):
    f = block.ls1(block.attn(block.norm1(x)))
    moved = block.drop_path1(f)
    return (moved if tap == 'after' else f), x + moved


def feed(block, x, shape, tap='before'):
    f = block.ls2(block.mlp(block.norm2(x)))
    moved = block.drop_path2(f)
    return (moved if tap == 'after' else f), x + moved


def merge(module, x, shape):
    raise AssertionError('a plain ViT has no merges')


def emit(trunk, tap, x, shape):
    if ENTRY(trunk) == 'forward':
        x = getattr(trunk, f'norm{tap[1]}')(x[:, trunk.num_prefix_tokens:])
        return x.reshape(x.shape[0], *shape, -1).permute(0, 3, 1, 2).contiguous()
    return trunk.norm(x)


def pack(trunk, outs):
    return tuple(outs) if ENTRY(trunk) == 'forward' else outs[0]
