"""`timm://NAME[?file=FILE]` as a checkpoint: a ViT's published weights for mmpretrain's VisionTransformer.

OpenMMLab has no ViT-B/16 that has seen ImageNet-21k alone, where papers on fine-tuning start. timm has both that they
use: `timm://vit_base_patch16_224.orig_in21k`, Google's first (ViT-B_16.npz), and `timm://vit_base_patch16_224.augreg_in21k`.
timm fetches them; FILE is one that is at hand, in Google's format (.npz) or timm's.
"""
import re

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


def mmpretrain_vit(values):
    """The state dict of a timm ViT under the names of mmpretrain's ImageClassifier; ValueError where one is missing."""
    named = {}
    for name, value in values.items():
        matches = [(re.fullmatch(pattern, name), new) for pattern, new in _VIT_NAMES]
        new_name = next((match.expand(new) for match, new in matches if match), None)
        if new_name is None:
            raise ValueError(f"mmpretrain's VisionTransformer has no place for {name}; use the format timm or official")
        named[new_name] = value
    return named


_VIT_NAMES = (  # timm's name, mmpretrain's name
    (r'(cls_token|pos_embed)', r'backbone.\1'),
    (r'patch_embed\.proj\.(\w+)', r'backbone.patch_embed.projection.\1'),
    (r'blocks\.(\d+)\.norm([12])\.(\w+)', r'backbone.layers.\1.ln\2.\3'),
    (r'blocks\.(\d+)\.attn\.(qkv|proj)\.(\w+)', r'backbone.layers.\1.attn.\2.\3'),
    (r'blocks\.(\d+)\.mlp\.fc1\.(\w+)', r'backbone.layers.\1.ffn.layers.0.0.\2'),
    (r'blocks\.(\d+)\.mlp\.fc2\.(\w+)', r'backbone.layers.\1.ffn.layers.1.\2'),
    (r'blocks\.(\d+)\.ls1\.gamma', r'backbone.layers.\1.attn.gamma1.weight'),
    (r'blocks\.(\d+)\.ls2\.gamma', r'backbone.layers.\1.ffn.gamma2.weight'),
    (r'norm\.(\w+)', r'backbone.ln1.\1'),
    (r'head\.(\w+)', r'head.layers.head.\1'),
)
