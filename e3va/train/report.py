"""Say at the start of a run what trains and which weights arrived, and at its end how much memory it took."""
import sys

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner.base_loop import BaseLoop

from .. import loading
from ..loading import shorten
from ..methods.routing import KEY, table_of
from ..registry import HOOKS
from ..report import report
from ..tuned import tuned_trunks
from .change import plain, settle
from .saved_run import recorded_method


@HOOKS.register_module()
class ReportHook(Hook):
    """Log the table of `e3va.report`, the loads of weights, the peak memory; warn of a frozen trunk that got none.

    What is resumed or tested must bring all entries of the method, and an untuned model gets no tuned checkpoint.
    Weights that Pear has pruned have a run follow: averages, optimizer and DDP were made for all units.
    """

    trained = False                     # in this process: a test behind it is of what it has trained

    def after_load_checkpoint(self, runner, checkpoint):
        if not is_tuned(runner):
            refuse_tuned(runner, checkpoint)
            return
        if not isinstance(runner._train_loop, BaseLoop):                # only tested
            return
        if runner._resume and KEY in checkpoint and not any(hasattr(hook, 'prunes') for hook in runner.hooks):
            raise ValueError('the checkpoint to resume is of a run of Pear, and this one is without its hook: resume '
                             'with its method file (e.g. --method pear_lora), or start from its weights by load_from')
        follow(runner, checkpoint.get('state_dict', checkpoint))

    def before_train(self, runner):
        if not is_tuned(runner):
            return
        if runner._resume:
            self.demand(runner)
        self.trained = True
        follow(runner, plain(runner.model).state_dict())                # what init_cfg brought
        self.tell(runner)

    @master_only
    def tell(self, runner):
        loads = '\n'.join(f'weights {number}: {load}' for _, trunk in tuned_trunks(runner.model)
                          for number, load in enumerate(trunk.tuning.loads, 1))
        runner.logger.info(f'\n{report(runner.model)}\n{loads or "weights: none were loaded"}')
        self.warn(runner)

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

    def before_test(self, runner):
        if is_tuned(runner):
            if not self.trained:
                self.demand(runner)
            self.warn(runner)

    def demand(self, runner):
        """What is resumed or tested brings all that the model has: else untrained values would be taken for trained."""
        for _, trunk in tuned_trunks(runner.model):
            loading.demand(trunk, f'the checkpoint {runner._load_from}')

    @master_only
    def warn(self, runner):
        """A frozen trunk at random values makes every number of the run worthless."""
        for trunk in [trunk for _, trunk in tuned_trunks(runner.model) if trunk.tuning.fresh]:
            fresh = trunk.tuning.fresh
            runner.logger.warning(
                f'RANDOM TRUNK: {len(fresh)} frozen parameters of {type(trunk).__name__} have received no weights and '
                "will never learn any. Set model.backbone.init_cfg=dict(type='Pretrained', checkpoint=PATH_OR_URL) "
                'or load_from')


def follow(runner, state):
    """Have a run in the shape of pruned weights, where there are some."""
    tables = [table_of(state, prefix) for prefix, _ in tuned_trunks(plain(runner.model))]
    if table := next(filter(None, tables), None):
        settle(runner, lambda trunk: trunk.tuning.method.expect(trunk, table))


def is_tuned(runner):
    return any(hasattr(module, 'tuning') for module in runner.model.modules())


def refuse_tuned(runner, checkpoint):
    """ValueError where an untuned model is to take the checkpoint of a tuned one, and would lose what it learned."""
    method = recorded_method(checkpoint)
    own = set(plain(runner.model).state_dict())
    lost = [name for name in checkpoint.get('state_dict', checkpoint) if name.removeprefix('module.') not in own]
    if method and lost:
        raise ValueError(f'the checkpoint {runner._load_from} was trained with the method {method}, and this config '
                         f'has none, so that {len(lost)} entries would be lost ({shorten(lost, 3)}): add --method, or '
                         'make a stock checkpoint of it (tools/model_converters/merge_delta.py --stock)')
