"""Optimizer wrappers of DMLoRA, whose branches get a gradient only in the steps that draw them."""
import inspect

import torch
from mmengine.dist import all_reduce_params
from mmengine.optim import AmpOptimWrapper, BaseOptimWrapper, OptimWrapper

from ..registry import OPTIM_WRAPPERS


class BranchMixin:
    """What an optimizer wrapper must know of branches.

    A branch without a gradient is not stepped: neither its moments nor weight decay move it. DDP waits for a gradient
    of each of its parameters, so the hook has it ignore the branches, and here the drawn ones, which are the same in
    every process, are averaged in one message: it has the size of one LoRA whatever n is.
    """

    def step(self, **kwargs):
        all_reduce_params([parameter.grad for group in self.optimizer.param_groups for parameter in group['params']
                           if parameter.grad is not None and getattr(parameter, '_ddp_ignored', False)], op='mean')
        super().step(**kwargs)

    def retire(self, gone):
        """Forget parameters and their moments.

        Args:
            gone (list of (Parameter, Parameter)): the second is what has become the mean of both, and takes the mean
                of their moments; None: the first one is dropped.
        """
        state = self.optimizer.state
        for parameter, kept in gone:
            other = state.pop(parameter, None)
            if kept is not None and other:
                own = state.get(kept) or other
                state[kept] = {name: (value + other[name]) / 2 if isinstance(value, torch.Tensor) else value
                               for name, value in own.items()}
        left = {parameter for parameter, _ in gone}
        for group in self.optimizer.param_groups:
            group['params'] = [parameter for parameter in group['params'] if parameter not in left]

    def restart(self, scales, others, lr):
        """Go on with a new optimizer of the same type and settings.

        Args:
            scales (list of Parameter): trained at `lr`, without weight decay.
            others (list of Parameter): keep their group's rate and decay of the start.
            lr (float): of the scales.
        """
        old, others = self.optimizer, set(others)
        groups = [dict(params=scales, lr=lr, weight_decay=0.)]
        for group in old.param_groups:
            kept = [parameter for parameter in group['params'] if parameter in others]
            if kept:
                settings = {name: value for name, value in group.items() if not name.startswith('initial_')}
                groups.append(dict(settings, params=kept, lr=group.get('initial_lr', group['lr'])))
        known = inspect.signature(type(old).__init__).parameters
        new = type(old)(groups, **{name: value for name, value in old.defaults.items() if name in known})
        BaseOptimWrapper.__init__(self, new)                            # sets what depends on the optimizer


@OPTIM_WRAPPERS.register_module()
class DMLoRAOptimWrapper(BranchMixin, OptimWrapper):
    """mmengine's, for DMLoRA."""


@OPTIM_WRAPPERS.register_module()
class AmpDMLoRAOptimWrapper(BranchMixin, AmpOptimWrapper):
    """The same in mixed precision."""
