"""Optimizer wrappers of GPS."""
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from ..layers.sparse_product import put
from ..registry import OPTIM_WRAPPERS
from .method import sparse_layers


class Masks:
    """Comes first among the bases.

    In the mode 'sparse' there is nothing to do: the optimizer holds one value for each selected entry. In the mode
    'mask' it holds all weights, and their gradients at the other entries become zero behind the clipping and in front
    of the step, as in the public code (Eq. 6).
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.masked = []
        self.optimizer.register_step_pre_hook(self.clear)

    def mask(self, trunk):
        """Let only the selected entries of a trunk move; ValueError for a decay, which moves the others too."""
        self.masked = list(sparse_layers(trunk).values())
        trunk.tuning.hooked = True
        held = {layer.weight for layer in self.masked}
        for group in self.optimizer.param_groups:
            if group.get('weight_decay') and any(parameter in held for parameter in group['params']):
                raise ValueError(f"GPS(mode='mask') needs weight_decay=0, found {group['weight_decay']}: a decay would "
                                 "move the entries that are not selected; set it to 0, or take mode='sparse'")

    @torch.no_grad()
    def clear(self, *_):
        for layer in self.masked:
            gradient = layer.weight.grad
            if gradient is not None:
                kept = gradient.flatten()[layer.index.long()]
                gradient.copy_(put(torch.zeros_like(gradient), layer.index, kept))


@OPTIM_WRAPPERS.register_module()
class GPSOptimWrapper(Masks, OptimWrapper):
    """mmengine's `OptimWrapper` for GPS, in both of its modes; see `Masks`."""


@OPTIM_WRAPPERS.register_module()
class AmpGPSOptimWrapper(Masks, AmpOptimWrapper):
    """The same in mixed precision."""
