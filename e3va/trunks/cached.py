"""What a frozen trunk makes of an image in training is computed once and kept, by the image's own values."""
import hashlib

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..layers.recompute import traced
from ..surgery import called, unwrap, wrap
from . import head_entries

PLACE = 'e3va_cache'               # of a trunk's `Cache`


class Cache:
    """{digest of an image: its features, a list of tensors on the CPU}; a copy of it, pickled ones too, is empty.

    Attributes:
        form: how the trunk gives them out, of torch's pytree.
    """

    def __init__(self):
        self.kept, self.form = {}, None

    def __len__(self):
        return len(self.kept)

    def __reduce__(self):
        return Cache, ()

    @property
    def bytes(self):
        return sum(leaf.nbytes for leaves in self.kept.values() for leaf in leaves)


def cache_features(trunk, parts):
    """Let a trunk through which nothing is backpropagated compute each training image's features once.

    In a timm classifier they are what its head gets, in any other trunk all that it gives out. Images with the same
    values have the same features; evaluation neither reads nor fills the cache.

    Args:
        parts (Family): of the trunk, or None.
    """
    entry = parts.ENTRY(trunk) if parts else 'forward_features' if head_entries(trunk) else 'forward'
    setattr(trunk, PLACE, Cache())
    wrap(trunk, entry, forward)


def digests(images):
    """A digest of each image's values, (B, ...) to a list of bytes."""
    return [hashlib.blake2b(image.numpy(), digest_size=16).digest()
            for image in images.detach().cpu().contiguous().flatten(1).view(torch.uint8)]


def forward(before, trunk, images, *args, **options):
    """The trunk's outputs, by what stood in this function's place; see `surgery.wrap`."""
    run = called(before, trunk)
    if not trunk.training or traced():
        return run(images, *args, **options)
    cache, keys = getattr(trunk, PLACE), digests(images)
    new = {key: i for i, key in enumerate(keys) if key not in cache.kept}
    if new:
        with torch.no_grad():
            leaves, cache.form = tree_flatten(run(images[list(new.values())], *args, **options))
        leaves = [leaf.cpu() for leaf in leaves]
        cache.kept.update((key, [leaf[i].clone() for leaf in leaves]) for i, key in enumerate(new))
    columns = zip(*(cache.kept[key] for key in keys))
    return tree_unflatten([torch.stack(column).to(images.device) for column in columns], cache.form)


def empty(trunk):
    """Forget all features: the weights that they were made by have changed."""
    if hasattr(trunk, PLACE):
        setattr(trunk, PLACE, Cache())


def uncached(trunk):
    """Undo `cache_features`."""
    if hasattr(trunk, PLACE):
        unwrap(trunk, forward)
        delattr(trunk, PLACE)
