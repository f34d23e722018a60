"""The side network: adapters of all blocks, and the trunk's forward with the highway beside it (equations 7 and 8)."""
import copy

import torch
from torch import nn

from ..trunks import FAMILIES


class Side(nn.Module):
    """What the highway adds to a trunk; it lies in the trunk as its child `e3va`.

    Args:
        adapters: list of stages, each a list of blocks, each a ModuleDict of 'attn' and 'mlp' adapters.
        merges: {stage: module} of trainable copies of the trunk's own downsampling, empty when it is inherited.
    """

    def __init__(self, adapters, merges, arrangement, skip, join, tap):
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleList(stage) for stage in adapters)
        self.merges = nn.ModuleDict({str(i): copy.deepcopy(merge).requires_grad_(True) for i, merge in merges.items()})
        self.arrangement, self.skip, self.join, self.tap = arrangement, skip, join, tap

    def forward(self, pair, e, f1, f2):
        """One block of the highway: e_{i+1} of equation 8."""
        if self.arrangement == 'stacked':                               # Fig. 3: the first output enters the second
            inner = self.adapt(pair['attn'], f1)
            return e + self.adapt(pair['mlp'], f2 + inner)
        return e + self.adapt(pair['attn'], f1) + self.adapt(pair['mlp'], f2)

    def adapt(self, adapter, x):
        return adapter(x) + x if self.skip else adapter(x)


def highway(trunk, image, **refused):
    """Stock trunk without gradient (eq. 7), highway with it (eq. 8), joined where the trunk gives something out.

    Args:
        image (Tensor): (B, 3, H, W), as for the stock trunk.

    Returns:
        what the stock trunk returns, same shapes.
    """
    if any(refused.values()):
        raise ValueError(f'E3VA does not take {", ".join(refused)} in the forward')
    parts, side = FAMILIES[trunk.tuning.family], trunk.e3va
    taps, merges = parts.taps(trunk), parts.merges(trunk)
    with torch.no_grad():
        l, shape = parts.stem(trunk, image)
    e, outs = l, []

    def give_out(tap):
        if side.join == 'post':
            outs.append(parts.emit(trunk, tap, l, shape) + parts.emit(trunk, tap, e, shape))
        else:
            outs.append(parts.emit(trunk, tap, l + e if side.join == 'sum' else e, shape))

    for i, (blocks, adapters) in enumerate(zip(parts.stages(trunk), side.stages)):
        for j, (block, pair) in enumerate(zip(blocks, adapters)):
            with torch.no_grad():
                f1, f2, l = parts.read(block, l, shape, side.tap)
            e = side(pair, e, f1, f2)
            if (i, j) in taps:
                give_out((i, j))
        if i + 1 < len(side.stages) or (i, 'merged') in taps:
            own = side.merges[str(i)] if str(i) in side.merges else merges[i]
            e, _ = parts.merge(own, e, shape)
            with torch.no_grad():
                l, shape = parts.merge(merges[i], l, shape)
            if (i, 'merged') in taps:
                give_out((i, 'merged'))
    return parts.pack(trunk, outs)
