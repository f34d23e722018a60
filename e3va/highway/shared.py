"""Several highways beside one pass of the trunk that they share, for inference.

The trunk's stream does not depend on what is trained beside it (equation 7). So blocks of the same weights are run
once, and each highway takes from their branches what it takes when it runs alone, in the same order: to the bit.
"""
import torch

from ..layers import served
from ..layers.recompute import FORMS
from ..trunks.gathered import gathered
from .side import join

PROBES = (224, 224), (256, 320)                                         # height and width


@torch.no_grad()
def together(trunks, image):
    """What each of some trunks in eval gives out for an image (B, C, H, W): list in their order.

    Their blocks compute the same (`same_pass`); those of the first are run.
    """
    parts = trunks[0].tuning.parts
    outs, rides = [None] * len(trunks), {i: ride(trunk) for i, trunk in enumerate(trunks)}

    def send(value):
        for i, one in list(rides.items()):
            try:
                one.send(value)
            except StopIteration as end:
                outs[i] = end.value
                del rides[i]

    send(None)
    l, shape = parts.stem(trunks[0], image)
    send((l, shape))
    for i, blocks in enumerate(parts.stages(trunks[0])):
        for block in blocks:
            with gathered(block):
                for name in parts.names(block):
                    f, l = (parts.attend if name == 'attn' else parts.feed)(block, l, shape)
                    send(f.movedim(parts.AXIS, -1))
            send(l)
            if not rides:
                return outs
        merged = parts.merge(parts.merges(trunks[0])[i], l, shape)
        send(merged)
        if not rides:
            return outs
        if not parts.INSIDE:                                            # else the next block merges the trunk's itself
            l, shape = merged


def ride(trunk):
    """The highway of a trunk, as `side.stage` has it, beside blocks that somebody else runs.

    A generator: it is sent (tokens, shape) behind the stem, then for each block the output of each branch, (B, ..., C),
    and the tokens behind it, and between stages (tokens, shape) behind the merge. It returns what the trunk gives out.
    """
    parts, side, outs = trunk.tuning.parts, trunk.e3va, []
    taps = parts.taps(trunk)
    l, shape = yield
    c = torch.zeros_like(l) if side.beside(parts.stages(trunk)[0][0]) else l
    c = c.movedim(parts.AXIS, -1)

    def give_out(tap, e):
        outs.append(join(trunk, tap, shape, l, e, FORMS['exact'], ()))

    for i, stage in enumerate(side.stages):
        blocks, pairs, done = parts.stages(trunk)[i], [served(pair) for pair in stage], 0
        beside = side.beside(blocks[0])
        for j, pair in enumerate(pairs):
            if j == done:                                               # a segment begins: c may be the stream itself
                c = c.contiguous() if beside else c.clone(memory_format=torch.contiguous_format)
            onwards = None
            for name in parts.names(blocks[j]):
                onwards = side.add(name, c, pair, (yield), onwards)
            l = yield
            if (i, j) in taps or j + 1 == len(pairs):
                c.add_(side.biases(pairs[done:j + 1]))
                own, done = c.movedim(-1, parts.AXIS), j + 1
                e = l + own if beside else own
                if (i, j) in taps:
                    give_out((i, j), e)
        if i + 1 < len(side.stages) or (i, 'merged') in taps:
            merged = yield
            own = side.merges[str(i)] if str(i) in side.merges else parts.merges(trunk)[i]
            e = parts.merge(own, e, shape)[0]
            c = (e - merged[0] if beside else e).movedim(parts.AXIS, -1)
            if not parts.INSIDE:
                l, shape = merged
            if (i, 'merged') in taps:
                give_out((i, 'merged'), e)
    return parts.pack(trunk, outs)


@torch.no_grad()
def same_pass(one, other):
    """Whether two trunks under E3VA, in eval, compute the same stream: by two images, as their classes may differ."""
    if one.tuning.family != other.tuning.family:
        return False
    tried = [(stream(one, size), stream(other, size)) for size in PROBES]
    return any(a for a, _ in tried) and all(
        (a is None) == (b is None) and (a is None or len(a) == len(b) and all(map(torch.equal, a, b)))
        for a, b in tried)


def stream(trunk, size):
    """The tokens of a trunk behind its stem and behind each block that is used; None where it takes no such image."""
    parts, like, found = trunk.tuning.parts, next(trunk.parameters()), []
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(like.device)
    try:
        l, shape = parts.stem(trunk, image)
        for i, blocks in enumerate(parts.stages(trunk)):
            found.append(l)
            for block in blocks:
                for name in parts.names(block):
                    f, l = (parts.attend if name == 'attn' else parts.feed)(block, l, shape)
                    found += [f, l]
            if not parts.INSIDE and i in parts.merges(trunk):
                l, shape = parts.merge(parts.merges(trunk)[i], l, shape)
    except Exception:                                                   # as stock trunks refuse sizes in many ways
        return None
    return found
