"""Trained parameters on the trunks of the papers' tables."""
import e3va
from e3va.registry import MODELS

SWIN = dict(b=dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
            l=dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)))


def count(method, trunk='mmpretrain.VisionTransformer', **options):
    """What a method trains on ViT-B, or on another trunk."""
    import mmdet.models  # noqa: F401
    import mmpretrain.models  # noqa: F401
    options = options or dict(arch='b')
    return e3va.report(MODELS.build(dict(type='e3va.Tuned', trunk=trunk, method=method, **options)))['trained']
