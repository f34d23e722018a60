"""Swin of timm: maps (B, H, W, C), merges at the start of a stage, one norm after the last."""
from .role import Role, stock

CLASSES = ('timm.:SwinTransformer',)
QKV = r'layers\.\d+\.blocks\.\d+\.attn\.qkv'
ROLES = dict(
    q=Role(QKV, 0, 3), k=Role(QKV, 1, 3), v=Role(QKV, 2, 3),
    proj=Role(r'layers\.\d+\.blocks\.\d+\.attn\.proj'),
    fc1=Role(r'layers\.\d+\.blocks\.\d+\.mlp\.fc1'),
    fc2=Role(r'layers\.\d+\.blocks\.\d+\.mlp\.fc2'))
HEAD = r'head(\..*)?'
BRANCHES = ('attn', 'mlp')
AXIS = -1


def owns(trunk):
    return stock(trunk, CLASSES, 'forward_features') and hasattr(trunk, 'layers')


def out_norms(trunk):
    return [f'norm{i}' for i in trunk.out_indices] if ENTRY(trunk) == 'forward' else ['norm']


def ENTRY(trunk):
    """TimmTrunk gives maps from `forward`; plain timm models put their head behind `forward_features`."""
    return 'forward' if hasattr(trunk, 'out_indices') else 'forward_features'


def stages(trunk):
    return [list(stage.blocks) for stage in trunk.layers]


def merges(trunk):
    return {i - 1: stage.downsample for i, stage in enumerate(trunk.layers) if i > 0}


def taps(trunk):
    indices = trunk.out_indices if ENTRY(trunk) == 'forward' else [len(trunk.layers) - 1]
    return [(i, len(stage.blocks) - 1) for i, stage in enumerate(trunk.layers) if i in indices]


def stem(trunk, image):
    return trunk.patch_embed(image), None


def attend(block, x, shape, tap='before'):
    f = block._attn(block.norm1(x))
    moved = block.drop_path1(f)
    return (moved if tap == 'after' else f), x + moved


def feed(block, x, shape, tap='before'):
    f = block.mlp(block.norm2(x))
    moved = block.drop_path2(f)
    return (moved if tap == 'after' else f), x + moved


def merge(module, x, shape):
    return module(x), shape


def emit(trunk, tap, x, shape):
    if ENTRY(trunk) == 'forward':
        return getattr(trunk, f'norm{tap[0]}')(x).permute(0, 3, 1, 2).contiguous()
    return trunk.norm(x)


def pack(trunk, outs):
    return tuple(outs) if ENTRY(trunk) == 'forward' else outs[0]
