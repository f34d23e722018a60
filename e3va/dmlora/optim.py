"""Optimizer wrappers of DMLoRA, whose branches get a gradient only in the steps that draw them."""
import inspect

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
