"""A tuned model as a stock one: the delta folded into plain layers."""
import copy

import torch
from torch import nn

from .. import loading
from ..layers.entries import put_entries_in
from ..layers.gelu import keep_inputs
from ..layers.read import read_again
from ..methods.routing import TABLE, routing_of
from ..surgery import replace, unbind, unhook
from ..trunks import head_entries
from ..trunks.cached import uncached
from ..trunks.recompute import keep_blocks
from ..trunks.sampled import whole_backward
from ..trunks.walk import ask_for_gradient, restore
from ..tuned import demand_hook, tuned_trunks


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """A copy of a tuned model (or trunk) with the delta folded into plain layers: the stock classes and names.

    Raises ValueError where the method adds something that no stock layer can do (E3VA's highway).
    """
    for _, trunk in tuned_trunks(model):
        if not trunk.tuning.method.mergeable:
            raise ValueError(f'{type(trunk.tuning.method).__name__} cannot be merged: it adds layers that the stock '
                             'trunk has not. Keep the tuned model, or its delta (e3va.save_delta)')
    model = copy.deepcopy(model)
    for _, trunk in tuned_trunks(model):
        put_entries_in(trunk)
    for name, layer in [(name, layer) for name, layer in model.named_modules()
                        if callable(getattr(layer, 'merged', None))]:
        replace(model, name, layer.merged())
    for _, trunk in tuned_trunks(model):
        if routing_of(trunk):
            replace(trunk, TABLE, None)
        unbind(trunk, 'train')
        whole_backward(trunk)
        keep_blocks(trunk)
        keep_inputs(trunk)
        uncached(trunk)
        if trunk.tuning.parts:
            restore(trunk, trunk.tuning.parts)
        loading.unwatch(trunk)
        read_again(trunk)
        unhook(trunk, ask_for_gradient, demand_hook)
        loading.renew(trunk)
        keys, head = set(trunk.tuning.keys), head_entries(trunk)
        places = tuple(f'{name.rpartition(".")[0]}.' for name in head)
        del trunk.tuning
        assert all(name.startswith(places) for name in keys ^ set(trunk.state_dict()))  # a quantised one had no bias
    return model.requires_grad_(True)
