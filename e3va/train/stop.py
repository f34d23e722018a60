"""SIGTERM, by which clusters end a job: the run saves where it is, and ends well."""
import contextlib
import signal
from functools import partial

import torch
from mmengine.dist import get_dist_info, is_distributed
from mmengine.hooks import EMAHook, Hook
from torch import distributed

from ..registry import HOOKS
from .checkpoint import CheckpointHook


@HOOKS.register_module()
class StopHook(Hook):
    """Save a checkpoint at the end of the step in which SIGTERM comes, and end the process with exit code 0.

    It is `iter_N.pth`, from which `--resume` goes on at the next batch; the next regular checkpoint outdates it.
    A signal that comes during a validation ends that, and what is saved is the run in front of it. Of several
    processes one signal is enough, but during a validation, which each of them leaves by its own.
    """

    priority = 'LOWEST'                                                 # behind whatever else a step does

    def __init__(self):
        self.asked, self.former, self.group = False, None, None

    def before_train(self, runner):
        if is_distributed() and self.group is None:                     # on the CPU: nothing waits for a GPU
            self.group = distributed.new_group(backend='gloo')
        for loader in (runner.train_dataloader, runner.val_loop and runner.val_dataloader):
            if getattr(loader, 'num_workers', 0):
                loader.worker_init_fn = partial(deaf, loader.worker_init_fn)
        with contextlib.suppress(ValueError):                           # not the main thread, which alone may do so
            self.former = signal.signal(signal.SIGTERM, self.ask)

    def ask(self, *_):
        self.asked = True

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.agreed():
            self.stop(runner)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if not self.asked:
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):                               # it has its weights in the model's place
                hook.after_val_epoch(runner)
        runner.train_loop._iter -= 1                                    # as at the end of the last step
        self.stop(runner)

    def agreed(self):
        """Whether any process was asked to end; the same in all of them."""
        if self.group is None or get_dist_info()[1] == 1:
            return self.asked
        asked = torch.tensor(float(self.asked))
        distributed.all_reduce(asked, distributed.ReduceOp.MAX, group=self.group)
        return bool(asked)

    def stop(self, runner):
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        said = f'saved {hook.save_here(runner)}; --resume goes on from it' if hook else (
            'nothing is saved, for this run has no e3va.CheckpointHook')
        runner.logger.info(f'SIGTERM: the run ends after iteration {runner.iter + 1}; {said}')
        self.after_train(runner)
        raise SystemExit(0)

    def after_train(self, runner):
        if self.former is not None:
            signal.signal(signal.SIGTERM, self.former)
        self.asked, self.former = False, None


def deaf(stock, number):
    """What a loader's worker begins with: it leaves SIGTERM, which may come to all of a job, to the process it is of.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if stock is not None:
        stock(number)
