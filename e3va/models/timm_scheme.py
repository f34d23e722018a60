"""`timm://NAME[?file=FILE]` as a checkpoint: a ViT's published weights for mmpretrain's VisionTransformer.

OpenMMLab has no ViT-B/16 that has seen ImageNet-21k alone, where papers on fine-tuning start. timm has both that they
use: `timm://vit_base_patch16_224.orig_in21k`, Google's first (ViT-B_16.npz), and `timm://vit_base_patch16_224.augreg_in21k`.
timm fetches them; FILE is one that is at hand, in Google's format (.npz) or timm's.
"""
from ..loading import shorten
from ..surgery import near
from ..trunks.timm_trunk import load_timm


def register(checkpoint):
    """Make it known to mmengine's module of that name."""
    checkpoint.CheckpointLoader.register_scheme(prefixes='timm://', loader=load_scheme, force=True)


def load_scheme(filename, map_location=None, logger=None):
    """A checkpoint dict in mmpretrain's names (entries `backbone.`), on the CPU.

    Raises:
        ValueError: unknown name, a model that is no plain ViT, a file that leaves weights out, or no way to the hub.
    """
    import timm  # slow to import, and few configs come here

    from ..datasets.checkpoints import mmpretrain_vit
    name, _, file = filename[len('timm://'):].partition('?file=')
    if not timm.is_model(name.partition('.')[0]):
        raise ValueError(f'{filename}: timm has no model {name!r}; {near(name, timm.list_models("vit_*"))}')
    try:
        model = timm.create_model(name, pretrained=not file, num_classes=0)
    except Exception as error:      # the hub's errors have no common class; timm's own speak of tags
        raise ValueError(f'{filename}: timm cannot fetch the weights ({type(error).__name__}: {error}). Fetch the file '
                         f'elsewhere and give timm://{name}?file=FILE') from error
    if file.endswith('.npz'):
        model.load_pretrained(file)
    elif file and (missing := load_timm(model, file).missing_keys):
        raise ValueError(f'{file} leaves {len(missing)} parameters of {name} at random: {shorten(missing)}. Give '
                         'the file of this size of model')
    return dict(state_dict=mmpretrain_vit(model.state_dict()))
