"""timm trunks for mm necks and heads: NCHW maps at `out_indices`, each behind a norm of its own."""
import logging
import sys

from torch import nn

from ..registry import MODELS
from ..surgery import near, rebind
from . import FAMILIES, family_of
from .walk import walk


@MODELS.register_module()
def TimmTrunk(name, out_indices=None, norm_eps=1e-5, with_cp=False, pretrained=False, init_cfg=None, **options):
    """A timm model that gives maps to OpenMMLab necks; its parameters keep timm's own names.

    Beside timm's names there is a `norm{i}` for each output, as in mmdet's Swin. What lies behind the last output is
    left out, timm's own last norm too, as by timm's `prune_intermediate_layers`.
    Images of any size are taken: they are padded to whole patches, a ViT's position embedding is resized. Where a
    family cannot (BEiT's tables of positions), a warning names the size that it is built for; `img_size` sets it.

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
    trunk = create(name, pretrained, options)
    family = family_of(trunk)
    if family is None:
        raise ValueError(f'TimmTrunk gives maps of the families {", ".join(maps_of_timm())}; {name!r} is a '
                         f'{type(trunk).__name__}, of none of them (a variant with another forward, or another model)')

    parts = FAMILIES[family]
    stages = parts.stages(trunk)
    staged = len(stages) > 1
    units = stages if staged else stages[0]
    indices = list(out_indices if out_indices is not None else range(len(units)) if staged else [len(units) - 1])
    if not indices or any(not isinstance(i, int) or not -len(units) <= i < len(units) for i in indices):
        raise ValueError(f'out_indices={tuple(indices)} of {name}: there are {len(units)} '
                         f'{"stages" if staged else "blocks"}, give numbers from 0 to {len(units) - 1}')
    trunk.out_indices = tuple(sorted(i % len(units) for i in indices))
    likes = [parts.like(units[i][-1] if staged else units[i]) for i in trunk.out_indices]
    trunk.channels = tuple(like.numel() for like in likes)
    ahead = max(0, len(trunk.feature_info) - len(units))   # timm counts MaxViT's stem as the first stage
    trunk.strides = tuple(int(trunk.feature_info[i + ahead]['reduction']) for i in trunk.out_indices)
    for i, width in zip(trunk.out_indices, trunk.channels):
        trunk.add_module(f'norm{i}', nn.LayerNorm(width, eps=norm_eps))
    trunk.prune_intermediate_layers([i + ahead for i in trunk.out_indices], prune_norm=True, prune_head=True)
    size = parts.size(trunk)
    if size:
        from mmengine.logging import print_log  # slow to import, and not for timm users
        print_log(f'{name} takes images of {size[0]} x {size[1]} alone: resize, crop or pad them to that, or give '
                  'another size by img_size=(height, width)', 'current', logging.WARNING)
    elif hasattr(getattr(trunk, 'patch_embed', None), 'dynamic_img_pad'):
        trunk.patch_embed.dynamic_img_pad = True
    if family == 'convnext':
        trunk.head = nn.Identity()                          # it keeps a norm, which nothing here would train
    trunk.with_cp = with_cp
    trunk.init_cfg = init_cfg
    rebind(trunk, 'forward', maps)
    rebind(trunk, 'init_weights', init_weights)
    return trunk


def create(name, pretrained, options):
    """timm's model without classifier, made for images of any size where its class can be."""
    import timm
    refused = None
    for size in (dict(dynamic_img_size=True), dict(strict_img_size=False), {}):
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **{**size, **options})
        except TypeError as error:                          # an option that the model's class does not take
            refused = error
    raise ValueError(f'TimmTrunk cannot build {name!r}: {refused}. Give options that its class takes')


def maps_of_timm():
    """Names of the families of timm's models."""
    return [name for name, parts in FAMILIES.items() if any(kind.startswith('timm.') for kind in parts.CLASSES)]


def maps(trunk, image):
    """The stock blocks from images (B, 3, H, W) to a tuple of normed maps (B, C, h, w)."""
    parts = FAMILIES[family_of(trunk)]
    return walk(trunk, parts, image, lambda i, j, block, x, shape: parts.run(block, x, shape))


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
