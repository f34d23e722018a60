"""Say at the start of a run what trains and which weights arrived, and at its end how much memory it took."""
import sys

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner.base_loop import BaseLoop

from ..registry import HOOKS
from ..report import report
from ..tuned import find_tuned
from .change import plain
from .pear import KEY, PearHook, settle, table_of


@HOOKS.register_module()
class ReportHook(Hook):
    """Log the table of `e3va.report`, the loads of weights, the peak memory; warn of a frozen trunk that got none.

    Weights that Pear has pruned have a run follow: averages, optimizer and DDP were made for all units.
    """

    def after_load_checkpoint(self, runner, checkpoint):
        if not isinstance(runner._train_loop, BaseLoop):                # only tested
            return
        if runner._resume and KEY in checkpoint and not any(isinstance(hook, PearHook) for hook in runner.hooks):
            raise ValueError('the checkpoint to resume is of a run of Pear, and this one is without its hook: resume '
                             'with its method file (e.g. --method pear_lora), or start from its weights by load_from')
        follow(runner, table_of(checkpoint.get('state_dict', checkpoint), find_tuned(plain(runner.model))[0]))

    def before_train(self, runner):
        follow(runner, table_of(find_tuned(runner.model)[1].state_dict()))      # what init_cfg brought
        self.tell(runner)

    @master_only
    def tell(self, runner):
        _, trunk = find_tuned(runner.model)
        loads = '\n'.join(f'weights {number}: {load}' for number, load in enumerate(trunk.tuning.loads, 1))
        runner.logger.info(f'\n{report(runner.model)}\n{loads or "weights: none were loaded"}')
        self.warn(runner, trunk)

    @master_only
    def after_train(self, runner):
        if torch.cuda.is_available():
            peak, what = torch.cuda.max_memory_allocated() / 2 ** 20, 'allocated on the GPU'
        elif sys.platform == 'win32':                                   # has no such count
            return
        else:
            import resource
            unit = 1 if sys.platform == 'darwin' else 2 ** 10           # of ru_maxrss, in bytes
            peak, what = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2 ** 20, 'resident, whole process'
        runner.logger.info(f'peak memory: {peak:,.0f} MiB ({what})')

    @master_only
    def before_test(self, runner):
        self.warn(runner, find_tuned(runner.model)[1])

    def warn(self, runner, trunk):
        """A frozen trunk at random values makes every number of the run worthless."""
        if fresh := trunk.tuning.fresh:
            runner.logger.warning(
                f'RANDOM TRUNK: {len(fresh)} frozen parameters of {type(trunk).__name__} have received no weights and '
                "will never learn any. Set model.backbone.init_cfg=dict(type='Pretrained', checkpoint=PATH_OR_URL) "
                'or load_from')


def follow(runner, table):
    """Have a run in the shape of pruned weights, where there are some."""
    if table:
        settle(runner, lambda trunk: trunk.tuning.method.expect(trunk, table))
