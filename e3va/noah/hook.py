"""When a supernet of NOAH draws; `e3va/noah/method.py` says what."""
from mmengine.hooks import Hook
from mmengine.runner.base_loop import BaseLoop

from ..dmlora.optim import BranchMixin
from ..registry import HOOKS
from ..train.change import common_seed, plain, rewrap
from ..tuned import find_tuned
from .method import NOAH, drawn, largest, parts_of, set_sizes, space_of


@HOOKS.register_module()
class NOAHHook(Hook):
    """Draw a subnet at every step; validation during the training is of the largest one.

    Draws are functions of the run's seed and the step, so that a resumed run is the interrupted one, and the same in
    every process.
    """

    priority = 'HIGHEST'

    def before_run(self, runner):
        if not isinstance(runner._train_loop, BaseLoop):                # only tested
            return
        prefix, trunk = find_tuned(plain(runner.model))
        method = trunk.tuning.method
        if not isinstance(method, NOAH) or method.subnet:
            raise ValueError(f'NOAHHook draws for the supernet of NOAH, and the model has {type(method).__name__}'
                             f'{" with a subnet" if isinstance(method, NOAH) else ""}: drop the hook')
        if not isinstance(runner.optim_wrapper, BranchMixin):
            raise ValueError(f'a supernet of NOAH needs an optimizer wrapper that knows of parts without a gradient, '
                             f'not {type(runner.optim_wrapper).__name__}: set '
                             "optim_wrapper.type='e3va.DMLoRAOptimWrapper', or 'e3va.AmpDMLoRAOptimWrapper'")
        own = {parameter for _, _, module in parts_of(trunk) for parameter in module.parameters()}
        rewrap(runner, [name for name, parameter in plain(runner.model).named_parameters() if parameter in own])

    def before_train(self, runner):
        self.seed = common_seed(runner)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        _, trunk = find_tuned(plain(runner.model))
        set_sizes(trunk, drawn(space_of(trunk, trunk.tuning.method), runner.iter, self.seed))

    def before_val(self, runner):
        _, trunk = find_tuned(plain(runner.model))
        set_sizes(trunk, largest(space_of(trunk, trunk.tuning.method)))
