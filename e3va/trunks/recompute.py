"""Blocks that keep the tokens in front of them alone and run again in backward, whatever the method in them.

The residual stream is all that leads from block to block, so a method that goes through the trunk (LoRA, adapters, full
fine-tuning) needs of each block its input: in full, in bf16, or in 8 bits with a scale for each token. The same holds
of what leads from stage to stage, and of the norms in front of the neck. Source: Chen et
al., Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174); the rounding is ours.
"""
import contextlib
import dataclasses
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from ..layers import Emptied
from ..layers.recompute import FORMS, again, hold, plain
from ..surgery import rebind, unbind, unhook

WAYS = dict(block='exact', block_bf16='bf16', block_int8='int8')
MARK = 'e3va_recompute'         # of a block


@dataclasses.dataclass
class Mark:
    """How the blocks of a trunk are run.

    Attributes:
        form: in which a block's input is kept, of `layers.recompute.FORMS`.
        shared: trained parameters that any block may use: outside all blocks, such as a method's factors for the whole
            trunk; where pruned modules are served by those of other blocks (Pear), all.
    """

    form: str
    shared: list = dataclasses.field(default_factory=list)


def recompute_blocks(trunk, parts, way):
    """Let every block of a trunk be run again in backward.

    Args:
        parts (Family): of the trunk. None: blocks are the innermost modules that stand in a row of their like.
        way (str): of WAYS.

    Raises:
        ValueError: no blocks are found.
    """
    blocks = [block for stage in parts.stages(trunk) for block in stage] if parts else rows(trunk)
    if not blocks:
        raise ValueError(f'recompute={way!r}: {type(trunk).__name__} has no rows of blocks that could be run again')
    walks = parts and parts.ENTRY(trunk) in trunk.__dict__              # else its own forward calls the blocks
    for module in trunk.modules():
        if getattr(module, 'with_cp', False):
            module.with_cp = False                                      # the trunk's own, for the same end
    mark = Mark(WAYS[way])
    between = [merge for merge in parts.merges(trunk).values() if merge and not parts.INSIDE] if parts else []
    if parts and mark.form != 'exact':                                  # else they keep their input as it is, too
        between += [trunk.get_submodule(name) for name in parts.out_norms(trunk)]
    for module in (*blocks, *between):
        vars(module)[MARK] = mark
        if module not in blocks or not walks:
            rebind(module, 'forward', partial(forward, vars(module).get('forward')))
    if mark.form != 'exact':                                            # torch's checkpointing finds them by itself
        trunk.register_forward_pre_hook(find_shared)
        find_shared(trunk)


def find_shared(trunk, inputs=None):
    """Before a forward: what a method shares may have changed since the last."""
    blocks = [block for block in trunk.modules() if MARK in vars(block)]
    served = any(isinstance(module, Emptied) for module in trunk.modules())
    inside = {id(parameter) for block in blocks for parameter in block.parameters() if not served}
    vars(blocks[0])[MARK].shared[:] = [parameter for parameter in trunk.parameters() if parameter.requires_grad
                                       and id(parameter) not in inside]


def rows(module):
    """The innermost modules, themselves of several, that stand beside others of their class in a list or sequence."""
    found, children = [], list(module.children())
    for child in children:
        inner = rows(child)
        alike = sum(type(other) is type(child) for other in children) > 1
        if inner or not (alike and isinstance(module, (nn.ModuleList, nn.Sequential)) and list(child.children())):
            found += inner
        else:
            found.append(child)
    return found


def forward(before, block, *args, **options):
    """A block's forward, run again in backward; `before` is what stood in its place, None the class's own."""
    return run(block, before or partial(type(block).forward, block), *args, **options)


def run(block, function, *args, **options):
    """function(*args, **options), of which the first tensor among `args` is kept in the block's form."""
    if MARK not in vars(block) or plain():
        return function(*args, **options)
    mark = vars(block)[MARK]
    at = next((i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)), None)
    if at is None:
        return function(*args, **options)
    x = args[at]
    others = tree_leaves((args[:at], args[at + 1:], options, captured(function)))
    # torch's checkpointing has gradients for what comes in beside x, and keeps nothing where none are asked for
    beside = any(isinstance(other, torch.Tensor) and other.requires_grad for other in others)
    asked = x.requires_grad or any(parameter.requires_grad for parameter in block.parameters())
    form = FORMS[mark.form if asked and not beside else 'exact']

    def whole(x):
        return function(*args[:at], x, *args[at + 1:], **options)

    statistics = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    held = () if form is FORMS['exact'] else hold(form, x)
    return again(once(whole, statistics) if statistics else whole, form, held, x,
                 dict.fromkeys([*block.parameters(), *mark.shared]), draws=True)


def captured(function):
    """What a function has from around it: EVP's carries tokens of the image into every block."""
    while isinstance(function, partial):
        function = function.func
    return [cell.cell_contents for cell in getattr(function, '__closure__', None) or ()]


def once(function, norms):
    """The function; from its second call on the running statistics of batch norms stay as they were."""
    calls = []

    def called(x):
        with frozen(norms) if calls else contextlib.nullcontext():
            calls.append(1)
            return function(x)
    return called


@contextlib.contextmanager
def frozen(norms):
    """Others stand in for the running statistics: those are changed in place, and a backward may have kept them."""
    before = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, before):
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items() if buffer is not None})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, before):
            norm._buffers.update(buffers)


def keep_blocks(trunk):
    """Undo `recompute_blocks`."""
    unhook(trunk, find_shared)
    for block in trunk.modules():
        bound = vars(block).get('forward')
        if vars(block).pop(MARK, None) and getattr(bound, 'func', None) is forward:
            unbind(block, 'forward')
            if bound.args[0]:
                vars(block)['forward'] = bound.args[0]
