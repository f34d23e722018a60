"""Checkpoints that no kill and no full disk takes away."""
import os

from mmengine import hooks
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.optim import OptimWrapper
from mmengine.runner.base_loop import BaseLoop

from ..files import whole as files
from ..registry import HOOKS
from .resume import check_optimizer

BETWEEN = 'ckpt_between'                                                # its name in the message hub


@HOOKS.register_module()
class CheckpointHook(hooks.CheckpointHook):
    """mmengine's hook, with all of its options, that never has less than one whole checkpoint.

    A checkpoint and `last_checkpoint` are written beside and renamed; those that it outdates (`max_keep_ckpts`, the
    best one before) go after that, with their deltas. mmengine removes first and writes in place. A run removes what
    lies in its own folder alone, also where that was moved or is a copy.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.saved_iter = None                                          # steps that the last regular one is of
        local = '://' not in str(self.out_dir or '')
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='e3va.whole')

    def before_train(self, runner):
        info, ids = runner.message_hub.runtime_info, []
        if self.max_keep_ckpts > 0:                                     # mmengine's hook removes the oldest of them now
            ids = list(info.get('keep_ckpt_ids') or ())[:-self.max_keep_ckpts]
        super().before_train(runner)
        self.file_backend = Postponed(self.file_backend)
        if not runner._resume:
            return
        for name in [name for name in info if name == 'best_ckpt' or name.startswith('best_ckpt_')]:
            self.find_best(runner, name)
        self.file_backend.outdated += [self.filename_tmpl.format(step) for step in ids]
        if runner._load_from is None or same(os.path.dirname(runner._load_from), self.out_dir):
            self.file_backend.outdated += info.get('outdated_ckpts') or ()      # of a run that was killed before
        self.remove_outdated(runner)

    def find_best(self, runner, name):
        """Of the best checkpoint the message hub has the place when it was written: the folder may have moved since."""
        recorded = runner.message_hub.get_info(name)
        here = self.file_backend.join_path(self.out_dir, os.path.basename(recorded or ''))
        if recorded and self.file_backend.exists(here):
            runner.message_hub.update_info(name, here)
            if name == 'best_ckpt' and hasattr(self, 'best_ckpt_path'):
                self.best_ckpt_path = here
            elif hasattr(self, 'best_ckpt_path_dict'):
                self.best_ckpt_path_dict[name.removeprefix('best_ckpt_')] = here

    def _save_checkpoint_with_step(self, runner, step, meta):
        """As mmengine's, but for the order, and for `last_checkpoint`, which that writes in place."""
        hub = runner.message_hub
        if self.max_keep_ckpts > 0 and (not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step):
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                self.file_backend.remove(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        if hub.runtime_info.get(BETWEEN):                               # where the run was ended before
            self.file_backend.remove(hub.get_info(BETWEEN))
            hub.update_info(BETWEEN, '')
        self.save_as(runner, self.filename_tmpl.format(step), meta=meta, by_epoch=self.by_epoch,
                     save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler)
        self.remove_outdated(runner)

    def save_as(self, runner, name, **options):
        """Write a checkpoint, and then its name into `last_checkpoint`."""
        hub, options = runner.message_hub, {**self.args, **options}
        self.saved_iter = runner.iter + (not options['by_epoch'])
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        hub.update_info('last_ckpt', self.last_ckpt)
        hub.update_info('outdated_ckpts', list(self.file_backend.outdated))
        runner.save_checkpoint(self.out_dir, name, self.file_client_args, backend_args=self.backend_args, **options)
        if is_main_process():
            files.write(os.path.join(runner.work_dir, 'last_checkpoint'), self.last_ckpt)

    def save_here(self, runner):
        """Save a run at the end of a step, between two regular checkpoints; the path of the file.

        The next regular one outdates it. One of this very step, if there is one, is as good.
        """
        if self.saved_iter != runner.iter + 1 or not self.save_optimizer:
            name = f'iter_{runner.iter + 1}.pth'
            runner.message_hub.update_info(BETWEEN, name)
            self.save_as(runner, name, by_epoch=False)
        return self.last_ckpt

    def _save_best_checkpoint(self, runner, metrics):
        super()._save_best_checkpoint(runner, metrics)
        self.remove_outdated(runner)

    def remove_outdated(self, runner):
        """Remove what newer checkpoints have outdated, now that they are whole."""
        backend, kept = self.file_backend, {self.last_ckpt, getattr(self, 'best_ckpt_path', None),
                                            *getattr(self, 'best_ckpt_path_dict', {}).values()}
        outdated, backend.outdated = backend.outdated, []
        for name in outdated if is_main_process() else ():
            path = backend.join_path(self.out_dir, name)
            if path in kept:                                            # written anew under its old name
                continue
            if backend.isfile(path):
                backend.backend.remove(path)
            elif backend.isdir(path):                                   # deepspeed's
                backend.backend.rmtree(path)
            runner.call_hook('after_remove_checkpoint', name=name)

    def after_load_checkpoint(self, runner, checkpoint):
        trained = isinstance(runner._train_loop, BaseLoop) and isinstance(runner.optim_wrapper, OptimWrapper)
        if runner._resume and trained:
            check_optimizer(runner, checkpoint)


class Postponed:
    """A file backend that only notes the names of what it is to remove."""

    def __init__(self, backend):
        self.backend, self.outdated = backend, []

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def remove(self, path):
        self.outdated.append(os.path.basename(path))

    rmtree = remove


@register_backend('e3va.whole', force=True)
class WholeFiles(LocalBackend):
    """mmengine's local files, written beside and renamed."""

    def put(self, obj, filepath):
        files.write(filepath, obj)

    def put_text(self, obj, filepath, encoding='utf-8'):
        files.write(filepath, obj.encode(encoding))


def same(one, other):
    """Whether two paths are one folder."""
    return os.path.realpath(one) == os.path.realpath(other)
