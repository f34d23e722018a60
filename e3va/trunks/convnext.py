"""ConvNeXt (V1, V2) of mmpretrain and timm: maps (B, C, H, W), blocks of one branch and no attention.

What other trunks do in the attention falls to the block's pointwise linears: q, k, v to the first, proj to the second.
"""
from .role import Role, stock

CLASSES = ('mmpretrain.:ConvNeXt', 'timm.:ConvNeXt')
FC1 = Role(r'stages\.\d+(\.blocks)?\.\d+\.(pointwise_conv1|mlp\.fc1)')
FC2 = Role(r'stages\.\d+(\.blocks)?\.\d+\.(pointwise_conv2|mlp\.fc2)')
ROLES = dict(q=FC1, k=FC1, v=FC1, proj=FC2, fc1=FC1, fc2=FC2)
HEAD = r'head(\.(?!norm\.).*)?'                                          # its norm is the trunk's
BRANCHES = ('mlp',)
AXIS = 1
NO_PROMPTS = 'prompts are tokens for an attention to read, and its blocks have none'


def owns(trunk):
    return stock(trunk, CLASSES[:1]) or stock(trunk, CLASSES[1:], 'forward_features')


def of_timm(trunk):
    return hasattr(trunk, 'stem')


def out_norms(trunk):
    if ENTRY(trunk) == 'forward':
        return [f'norm{i}' for i in sorted(trunk.out_indices)]
    modules = dict(trunk.named_modules())                               # a head behind norm_pre has none of its own
    return [name for name in ('norm_pre', 'head.norm') if name in modules and [*modules[name].parameters()]]


def ENTRY(trunk):
    """mmpretrain and TimmTrunk give maps from `forward`; plain timm models put their head behind `forward_features`."""
    return 'forward' if hasattr(trunk, 'out_indices') else 'forward_features'


def stages(trunk):
    return [list(stage.blocks if of_timm(trunk) else stage) for stage in trunk.stages]


def merges(trunk):
    return {i - 1: trunk.stages[i].downsample if of_timm(trunk) else trunk.downsample_layers[i]
            for i in range(1, len(trunk.stages))}


def taps(trunk):
    indices = trunk.out_indices if ENTRY(trunk) == 'forward' else [len(trunk.stages) - 1]
    return [(i, len(blocks) - 1) for i, blocks in enumerate(stages(trunk)) if i in indices]


def stem(trunk, image):
    x = trunk.stages[0].downsample(trunk.stem(image)) if of_timm(trunk) else trunk.downsample_layers[0](image)
    return x, None


def feed(block, x, shape, tap='before'):
    """The block adds its only branch itself: what passes its DropPath is the branch."""
    caught = []
    handle = block.drop_path.register_forward_hook(lambda drop, inputs, out: caught.append((*inputs, out)))
    try:
        behind = through('mlp', block, x, shape)
    finally:
        handle.remove()
    return caught[0][tap == 'after'], behind


def through(name, block, x, shape):
    """It does not checkpoint by itself meanwhile: that is left to `walk`."""
    if not getattr(block, 'with_cp', False):
        return block(x)
    block.with_cp = False
    try:
        return block(x)
    finally:
        block.with_cp = True


def run(block, x, shape):
    return block(x)


def merge(module, x, shape):
    return module(x), shape


def emit(trunk, tap, x, shape):
    if ENTRY(trunk) != 'forward':
        return trunk.norm_pre(x)
    norm = getattr(trunk, f'norm{tap[0]}')
    if of_timm(trunk):
        return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
    return norm(x.mean([-2, -1], keepdim=True)).flatten(1) if trunk.gap_before_final_norm else norm(x)


def pack(trunk, outs):
    return tuple(outs) if ENTRY(trunk) == 'forward' else outs[0]
