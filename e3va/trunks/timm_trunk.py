"""timm trunks for mm necks and heads: NCHW maps at `out_indices`, each behind a norm of its own."""
import sys

from torch import nn

from ..registry import MODELS
from ..surgery import near, rebind
from . import FAMILIES, family_of, norm_of
from .walk import walk


@MODELS.register_module()
def TimmTrunk(name, out_indices=None, norm_eps=1e-5, with_cp=False, pretrained=False, init_cfg=None, **options):
    """A timm Swin, ViT or ConvNeXt that gives maps to OpenMMLab necks; its parameters keep timm's own names.

    Beside timm's names there is a `norm{i}` for each output, as in mmdet's Swin. What lies behind the last output is
    left out, timm's own last norm too, as by timm's `prune_intermediate_layers`.
    Images of any size are taken: they are padded to whole patches, a ViT's position embedding is resized.

    Args:
        name (str): timm's name of the model, e.g. 'swin_base_patch4_window7_224'.
        out_indices (sequence of int): the blocks (ViT) or stages (Swin) whose output is given out. Default: the
            last block of a ViT, every stage of the others.
        norm_eps (float): epsilon of the norms that are added.
        with_cp (bool): keep no activations inside a block, compute them again in backward.
        pretrained (bool): let timm fetch its published weights from the hub.
        init_cfg (dict): `dict(type='Pretrained', checkpoint=...)` with a file or URL in timm's or the authors' format.
        **options: further arguments of `timm.create_model`.

    Returns:
        nn.Module: the timm model, its `forward` from images (B, 3, H, W) to a tuple of maps (B, C, h, w).

    Raises:
        ValueError: unknown name or option, a family that e3va does not read, an index out of range.
    """
    import timm
    if not timm.is_model(name.split('.')[0]):
        raise ValueError(f'timm {timm.__version__} has no model {name!r}; {near(name, timm.list_models())}')
    vit = name.startswith(('vit', 'deit', 'flexivit'))
    size = dict(dynamic_img_size=True) if vit else dict(strict_img_size=False) if name.startswith('swin_') else {}
    try:
        trunk = timm.create_model(name, pretrained=pretrained, num_classes=0, **{**size, **options})
    except TypeError as error:                              # an option that the model's class does not take
        raise ValueError(f'TimmTrunk cannot build {name!r}: {error}. It reads the plain ViT, Swin and ConvNeXt of '
                         'timm, with the options of their classes') from error
    family = family_of(trunk)
    if family is None:
        raise ValueError(f'TimmTrunk reads the Swin, ViT and ConvNeXt of timm; {name!r} is a {type(trunk).__name__}')

    parts = FAMILIES[family]
    units = parts.stages(trunk) if parts.merges(trunk) else parts.stages(trunk)[0]
    indices = list(out_indices if out_indices is not None else
                   range(len(units)) if parts.merges(trunk) else [len(units) - 1])
    if not indices or any(not isinstance(i, int) or not -len(units) <= i < len(units) for i in indices):
        raise ValueError(f'out_indices={tuple(indices)} of {name}: there are {len(units)} '
                         f'{"stages" if parts.merges(trunk) else "blocks"}, give numbers from 0 to {len(units) - 1}')
    trunk.out_indices = tuple(sorted(i % len(units) for i in indices))
    for i in trunk.out_indices:
        unit = units[i][0] if parts.merges(trunk) else units[i]
        trunk.add_module(f'norm{i}', nn.LayerNorm(norm_of(unit).weight.numel(), eps=norm_eps))
    trunk.prune_intermediate_layers(list(trunk.out_indices), prune_norm=True, prune_head=True)
    if hasattr(trunk, 'patch_embed'):
        trunk.patch_embed.dynamic_img_pad = True
    else:
        trunk.head = nn.Identity()                          # ConvNeXt's keeps a norm, which nothing here would train
    trunk.with_cp = with_cp
    trunk.init_cfg = init_cfg
    rebind(trunk, 'forward', maps)
    rebind(trunk, 'init_weights', init_weights)
    return trunk


def maps(trunk, image):
    """The stock blocks from images (B, 3, H, W) to a tuple of normed maps (B, C, h, w)."""
    return walk(trunk, FAMILIES[family_of(trunk)], image, lambda i, j, block, x, shape: block(x))


def init_weights(trunk):
    """Load the checkpoint that `init_cfg` names; without one the values that timm gave at construction stay."""
    if trunk.init_cfg and 'Pretrained' in str(trunk.init_cfg.get('type')):         # a name, or a class
        load_timm(trunk, trunk.init_cfg['checkpoint'])


def load_timm(trunk, source):
    """Load a file or URL in timm's or the authors' format into a timm model; the classifier only if its shape fits.

    Returns what torch's `load_state_dict` does: the missing and the unexpected keys.
    """
    from mmengine.runner import CheckpointLoader  # slow to import, and not for timm users
    state = CheckpointLoader.load_checkpoint(str(source), map_location='cpu')
    for key in ('state_dict', 'model', 'model_ema'):
        if isinstance(state.get(key), dict):
            state = state[key]
    for prefix in ('module.', 'backbone.'):
        inner = {key[len(prefix):]: value for key, value in state.items() if key.startswith(prefix)}
        state = inner or state
    convert = getattr(sys.modules[type(trunk).__module__], 'checkpoint_filter_fn', None)
    own = trunk.state_dict()
    state = {key: value for key, value in (convert(state, trunk) if convert else state).items()
             if not key.startswith('head') or (key in own and own[key].shape == value.shape)}
    return trunk.load_state_dict(state, strict=False)
