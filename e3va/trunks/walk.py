"""The stock forward of a trunk, block by block, for what has to stand between or beside its blocks."""
from torch.utils.checkpoint import checkpoint


def walk(trunk, parts, image, through, give_out=None):
    """Run a trunk as its own forward does, each block by way of `through`.

    Args:
        trunk (nn.Module): a trunk of the family `parts`.
        image (Tensor): (B, 3, H, W).
        through (callable): (stage, j, block, x, shape) -> x, the tokens behind block j of a stage.
        give_out (callable): (tap, x) -> x, what of the tokens the trunk gives out. Default: all.

    Returns:
        what the stock trunk returns.
    """
    taps, merges, outs = parts.taps(trunk), parts.merges(trunk), []

    def emit(tap):
        outs.append(parts.emit(trunk, tap, x if give_out is None else give_out(tap, x), shape))

    x, shape = parts.stem(trunk, image)
    for i, blocks in enumerate(parts.stages(trunk)):
        for j, block in enumerate(blocks):
            if keeps_nothing(trunk, block) and x.requires_grad:
                x = checkpoint(through, i, j, block, x, shape, use_reentrant=False)
            else:
                x = through(i, j, block, x, shape)
            if (i, j) in taps:
                emit((i, j))
            if len(outs) == len(taps):
                return parts.pack(trunk, outs)
        x, shape = parts.merge(merges[i], x, shape)
        if (i, 'merged') in taps:
            emit((i, 'merged'))
        if len(outs) == len(taps):
            return parts.pack(trunk, outs)


def keeps_nothing(trunk, block):
    """Whether activation checkpointing is on: OpenMMLab writes it on the blocks, `TimmTrunk` on the trunk."""
    return getattr(block, 'with_cp', getattr(trunk, 'with_cp', False))
