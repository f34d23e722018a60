"""Plain ViT of mmpretrain and mmsegmentation: tokens (B, L, C), the class token first; `shape` is the patch grid."""
import torch

from .role import Role, branch, stock

CLASSES = ('mmpretrain.:VisionTransformer', 'mmseg.:VisionTransformer')
# mmseg's attention is torch's MultiheadAttention, which reads its weights past any layer put in their place: LoRA alone
# goes inside, for the other methods only the MLP's roles exist there.
QKV, MHA = r'layers\.\d+\.attn\.qkv', r'layers\.\d+\.attn\.attn'
ROLES = dict(
    q=(Role(QKV, 0, 3), Role(MHA, 0, 3)), k=(Role(QKV, 1, 3), Role(MHA, 1, 3)), v=(Role(QKV, 2, 3), Role(MHA, 2, 3)),
    proj=Role(r'layers\.\d+\.attn\.proj'),
    fc1=Role(r'layers\.\d+\.ffn\.(layers\.0\.0|w12)'),
    fc2=Role(r'layers\.\d+\.ffn\.(layers\.1|w3)'))
HEAD = None
NO_PROMPTS = None


def of_mmseg(trunk):
    return any(base.__module__.startswith('mmseg.') for base in type(trunk).__mro__)


def owns(trunk):
    return stock(trunk, CLASSES)


def final_norm(trunk):
    """Name of the norm behind the last block, or None."""
    if not trunk.final_norm:
        return None
    return trunk.norm1_name if of_mmseg(trunk) else 'ln1'


def out_norms(trunk):
    norms = [final_norm(trunk)] if len(trunk.layers) - 1 in trunk.out_indices and trunk.final_norm else []
    return norms + (['ln2'] if getattr(trunk, 'out_type', None) == 'avg_featmap' else [])


def idle_norms(trunk):
    return [final_norm(trunk)] if trunk.final_norm and final_norm(trunk) not in out_norms(trunk) else []


def ENTRY(trunk):
    return 'forward'


def stages(trunk):
    return [list(trunk.layers)]


def merges(trunk):
    return {}


def taps(trunk):
    if getattr(trunk, 'out_origin', False):
        raise ValueError('e3va cannot tune a VisionTransformer with out_origin=True (its first output lies before '
                         'every block, where nothing trains); set out_origin=False')
    return [(0, i) for i in range(len(trunk.layers)) if i in trunk.out_indices]


def stem(trunk, image):
    x, shape = trunk.patch_embed(image)
    if trunk.cls_token is not None:
        x = torch.cat((trunk.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
    if of_mmseg(trunk):
        x = trunk._pos_embeding(x, shape, trunk.pos_embed)
        x = x if trunk.with_cls_token else x[:, 1:]
        return (trunk.pre_ln(x) if trunk.pre_norm else x), shape
    x = x + trunk.resize_pos_embed(trunk.pos_embed, trunk.patch_resolution, shape,
                                   mode=trunk.interpolate_mode, num_extra_tokens=trunk.num_extra_tokens)
    return trunk.pre_norm(trunk.drop_after_pos(x)), shape


def attend(block, x, shape, tap='before'):
    if hasattr(block.attn, 'out_drop'):                                 # mmpretrain: the attention adds no identity
        f, moved = branch(lambda: block.attn(block.norm1(x)), block.attn.out_drop, tap)
    else:                                                               # mmcv: it adds its own, here zero
        f, moved = branch(lambda: block.attn(block.norm1(x), identity=0.), block.attn.dropout_layer, tap)
    return f, x + moved


def feed(block, x, shape, tap='before'):
    f, moved = branch(lambda: block.ffn(block.norm2(x), identity=0.), block.ffn.dropout_layer, tap)
    return f, x + moved


def merge(module, x, shape):
    raise AssertionError('a plain ViT has no merges')


def emit(trunk, tap, x, shape):
    if tap[1] == len(trunk.layers) - 1 and trunk.final_norm:
        x = getattr(trunk, final_norm(trunk))(x)
    if not of_mmseg(trunk):
        return trunk._format_output(x, shape)
    patches = x[:, 1:] if trunk.with_cls_token else x
    out = patches.reshape(x.shape[0], *shape, -1).permute(0, 3, 1, 2).contiguous()
    return [out, x[:, 0]] if trunk.output_cls_token else out


def pack(trunk, outs):
    return tuple(outs)
