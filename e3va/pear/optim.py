"""Optimizer wrappers of Pear, which read the gradients that its scores come from."""
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from ..registry import OPTIM_WRAPPERS


class MomentsMixin:
    """Sums the gradients of some parameters and their squares, between backward and step.

    They are those of the loss: before clipping, and without the scale of mixed precision. A step whose gradients are
    not finite is left out, as the scaler leaves it out.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.watched, self.sums, self.steps = [], [], 0

    def watch(self, parameters):
        """Begin to sum; parameters that are watched already go on, no parameters end it."""
        parameters = list(parameters)
        if len(parameters) != len(self.watched) or any(a is not b for a, b in zip(parameters, self.watched)):
            self.watched, self.steps = parameters, 0
            self.sums = [torch.zeros(2, *one.shape, device=one.device) for one in parameters]

    def moments(self):
        """{parameter: (mean gradient, mean squared gradient)} of the steps since `watch`."""
        return {one: (both / max(self.steps, 1)).unbind() for one, both in zip(self.watched, self.sums)}

    def loss_scale(self):
        return 1.

    def step(self, **kwargs):
        if self.watched:
            self.read()
        super().step(**kwargs)

    @torch.no_grad()
    def read(self):
        gradients = [None if one.grad is None else one.grad.float() / self.loss_scale() for one in self.watched]
        if not all(bool(g.isfinite().all()) for g in gradients if g is not None):
            return
        for both, g in zip(self.sums, gradients):
            if g is not None:
                both += torch.stack([g, g.square()])
        self.steps += 1


@OPTIM_WRAPPERS.register_module()
class PearOptimWrapper(MomentsMixin, OptimWrapper):
    """mmengine's, for Pear."""


@OPTIM_WRAPPERS.register_module()
class AmpPearOptimWrapper(MomentsMixin, AmpOptimWrapper):
    """The same in mixed precision."""

    def loss_scale(self):
        return self.loss_scaler.get_scale()
