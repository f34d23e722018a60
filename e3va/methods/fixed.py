"""Fixed: the trunk extracts features, only neck and heads train; with a cache each image's are extracted once."""
from ..registry import METHODS
from ..trunks.cached import cache_features, empty
from .base import Method, choice


@METHODS.register_module()
class Fixed(Method):
    """No parameter of the trunk trains (but its output norms with `train_out_norms=True`).

    Args:
        train_out_norms (bool): see `Method`.
        cache (bool): keep the features of the training images, so that the trunk runs once for each of them: linear
            probing where nothing is augmented. In a run it is for `CacheHook`, which computes them before the first
            step and refuses a pipeline that draws at random; without a runner they are computed as images come.
    """

    mergeable = True
    linear = {}
    needs_family = False
    trunk_mode = 'eval'

    def __init__(self, train_out_norms=False, cache=False):
        super().__init__(train_out_norms)
        self.cache = choice('cache', cache, (True, False))
        if cache and train_out_norms:
            raise ValueError('cache=True with train_out_norms=True: features behind norms that train change with every '
                             'step and cannot be kept; drop one of them')

    def apply(self, trunk, parts):
        if not self.cache:
            return
        if trunk.tuning.also:
            raise ValueError(f'cache=True: a part of this {type(trunk).__name__} trains '
                             f'({"also=" if self.also else "the first layer, for images that are not RGB"}), '
                             'and with it the features change: drop cache, or what trains beside')
        cache_features(trunk, parts)

    def loaded(self, trunk, missing):
        empty(trunk)
