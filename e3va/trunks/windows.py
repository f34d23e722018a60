"""Pieces of the families whose blocks attend in windows of a map."""


def windows(size, run, x):
    """run(x) in windows of size x size of a map (B, H, W, C), padded to whole ones; 0: on all of it."""
    if size == 0:
        return run(x)
    from timm.models.vision_transformer_sam import window_partition, window_unpartition
    inside, padded = window_partition(x, size)
    return window_unpartition(run(inside), size, x.shape[1:3], padded)


def windows_of_tokens(size, run, x):
    """The same for a run from tokens (B, L, C) to tokens."""
    return windows(size, lambda x: run(x.flatten(1, 2)).view_as(x), x)


def last(run):
    """run, from maps with their channels last to such maps, for maps (B, C, H, W)."""
    return lambda x: run(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
