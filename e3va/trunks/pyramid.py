"""mmseg's `Feature2Pyramid` for any choice of scales: a plain ViT's maps, all of one size, as a pyramid."""
from mmseg.models.necks.featurepyramid import Feature2Pyramid as Stock

from ..registry import MODELS


@MODELS.register_module()
class Feature2Pyramid(Stock):
    """The stock neck, which without the scale 4 breaks where 0.25 is not used either.

    Args:
        embed_dim (int): channels of the trunk's maps.
        rescales (list of float): one of 4, 2, 1, 0.5, 0.25 for each map, in this order, e.g. [2, 1, 0.5].
        norm_cfg (dict): the norm inside the scale 4.
    """

    def __init__(self, embed_dim, rescales=(4, 2, 1, 0.5), norm_cfg=dict(type='SyncBN', requires_grad=True)):
        super().__init__(embed_dim, list(rescales), norm_cfg)
        if not hasattr(self, 'downsample_4x'):
            self.downsample_4x = None                # the stock forward lists it even where it is not used
