"""The stock forward of a trunk, block by block, for what has to stand between or beside its blocks."""
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from ..surgery import rebind, unbind
from . import recompute
from .gathered import called

OTHER_ENTRIES = ('forward_intermediates', 'get_intermediate_layers')        # timm's, beside forward


def reroute(trunk, parts, forward):
    """Let the trunk's forward be `forward(trunk, image, **options)`; timm's entries that would go past it refuse."""
    rebind(trunk, parts.ENTRY(trunk), forward)
    for name in OTHER_ENTRIES:
        if hasattr(trunk, name):
            rebind(trunk, name, bypass)


def bypass(trunk, *args, **options):
    """timm's other entries would give out the trunk without what stands beside its blocks."""
    raise ValueError(f'{type(trunk).__name__} is tuned by {type(trunk.tuning.method).__name__}, whose forward this '
                     "entry of timm goes past: take forward or forward_features, or for maps trunk='e3va.TimmTrunk' "
                     'with out_indices')


def refuse_options(trunk, options):
    """ValueError for options of the stock forward that a rerouted one does not take."""
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise ValueError(f'{type(trunk.tuning.method).__name__} does not take {", ".join(given)} in the forward of '
                         f'{type(trunk).__name__}; it takes the images alone')


def checkpoint_once(trunk, parts):
    """For parameters that several blocks share: let `walk` do the activation checkpointing where OpenMMLab's is on.

    That one runs a backward pass of its own for each block, and DDP refuses a parameter that is in two of them.
    """
    if any(getattr(block, 'with_cp', False) for blocks in parts.stages(trunk) for block in blocks):
        reroute(trunk, parts, partial(by_blocks, through_block))


def let_stock_checkpoint(trunk):
    """OpenMMLab's blocks checkpoint only what comes with a gradient, and behind a frozen stem the first one has none.

    It would keep all of its activations, the largest of the trunk, where with full fine-tuning it keeps nothing.
    torch's GroupNorm crashes there (2.13: in its backward on a CPU, maps of channels last).
    """
    for name, module in trunk.named_modules():
        if name and (getattr(module, 'with_cp', False) or isinstance(module, torch.nn.GroupNorm)):
            module.register_forward_pre_hook(ask_for_gradient)


def ask_for_gradient(block, inputs):
    """Its input is not changed in place: what runs the block a second time gives it the same one again."""
    x = inputs[0]
    if (torch.is_grad_enabled() and isinstance(x, torch.Tensor) and x.is_floating_point() and not x.requires_grad
            and any(parameter.requires_grad for parameter in block.parameters())):
        return x.detach().requires_grad_(), *inputs[1:]


def restore(trunk, parts):
    """Undo `checkpoint_once`: the trunk has no shared parameters any more."""
    if getattr(trunk.__dict__.get(parts.ENTRY(trunk)), 'args', ())[:1] == (through_block,):
        for name in (parts.ENTRY(trunk), *OTHER_ENTRIES):
            unbind(trunk, name)


def by_blocks(through, trunk, image, **options):
    """The stock forward, each block by way of through(parts, stage, j, block, x, shape); see `walk`."""
    refuse_options(trunk, options)
    parts = trunk.tuning.parts
    return walk(trunk, parts, image, partial(through, parts))


def through_block(parts, stage, j, block, x, shape):
    """x behind a block, as the stock block has it."""
    for name in parts.names(block):
        x = through_branch(parts, name, block, x, shape)
    return x


def through_branch(parts, name, block, x, shape):
    """x behind the branch 'attn' or 'mlp' of a block, its residual included."""
    return parts.through(name, block, x, shape)


def walk(trunk, parts, image, through, give_out=None, merge=None):
    """Run a trunk as its own forward does, each block by way of `through`.

    Args:
        trunk (nn.Module): a trunk of the family `parts`.
        image (Tensor): (B, 3, H, W).
        through (callable): (stage, j, block, x, shape) -> x, the tokens behind block j of a stage.
        give_out (callable): (tap, x) -> x, what of the tokens the trunk gives out. Default: all.
        merge (callable): (module, x, shape) -> x, shape, from stage to stage. Default: the family's. With it and
            `give_out` what `through` hands on may hold more than the tokens.

    Returns:
        what the stock trunk returns.
    """
    taps, merges, outs = parts.taps(trunk), parts.merges(trunk), []

    def emit(tap):
        outs.append(parts.emit(trunk, tap, x if give_out is None else give_out(tap, x), shape))

    x, shape = parts.stem(trunk, image)
    for i, blocks in enumerate(parts.stages(trunk)):
        for j, block in enumerate(blocks):
            x = called(block, partial(one, trunk, through, i, j, block), x, shape)
            if (i, j) in taps:
                emit((i, j))
            if len(outs) == len(taps):
                return parts.pack(trunk, outs)
        if not parts.INSIDE:
            x, shape = (merge or parts.merge)(merges[i], x, shape)
        if (i, 'merged') in taps:
            emit((i, 'merged'))
        if len(outs) == len(taps):
            return parts.pack(trunk, outs)


def one(trunk, through, i, j, block, x, shape):
    """x behind a block, which may be run again in backward."""
    if keeps_nothing(trunk, block) and torch.is_grad_enabled():
        return checkpoint(through, i, j, block, x, shape, use_reentrant=False)
    return recompute.run(block, through, i, j, block, x, shape)


def keeps_nothing(trunk, block):
    """Whether activation checkpointing is on: OpenMMLab writes it on the blocks, `TimmTrunk` on the trunk."""
    return getattr(block, 'with_cp', getattr(trunk, 'with_cp', False))
