"""Write a delta beside every checkpoint."""
import contextlib
import os
from functools import partial
from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook

from ..files.whole import Unwritten
from ..layers.quantised import quantised_entries
from ..registry import HOOKS
from . import file as delta_file
from .extract import delta, describe


@HOOKS.register_module()
class DeltaHook(Hook):
    """Beside each checkpoint NAME.pth (`epoch_N`, `iter_N`, `best_...`) write `delta_NAME.safetensors`.

    It holds what the checkpoint holds (under EMAHook the averaged weights), less the frozen trunk. Training is resumed
    from the checkpoint; the delta is for keeping, sharing and inference (`e3va://FILE`). It goes when e3va's
    CheckpointHook removes its checkpoint. Where it cannot be written the run goes on, and says so:
    `publish_delta.py` makes one from the checkpoint.

    Args:
        base (str): file or URL of the trunk's weights to record. Default: the `load_from` with which the run began,
            else the trunk's `init_cfg`.
    """

    priority = 'LOWEST'                         # after EMAHook has put its weights in place

    def __init__(self, base=None):
        self.base = base

    def before_train(self, runner):
        if not runner._resume:                  # a resumed run has its checkpoint there, and this from the message hub
            runner.message_hub.update_info('delta_base', runner._load_from)
        # mmengine does not tell hooks which file is being written
        runner.save_checkpoint = partial(self.note, runner.save_checkpoint)

    def note(self, save, out_dir, filename, *args, **options):
        self.name = filename
        save(out_dir, filename, *args, **options)

    def before_save_checkpoint(self, runner, checkpoint):
        from mmengine.model import is_model_wrapper
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        base = self.base or runner.message_hub.get_info('delta_base')
        path = path_of(runner, self.name)
        try:
            delta_file.write(path, {name: checkpoint['state_dict'][name] for name in delta(model)},
                             describe(model, base, checkpoint['meta'].get('dataset_meta'), runner.cfg,
                                      averaged='ema_state_dict' in checkpoint), quantised_entries(model))
        except Unwritten as error:
            runner.logger.error(f'the run goes on without this delta: {error}')
            return
        runner.logger.info(f'delta: {path}, {os.path.getsize(path) / 2 ** 20:.2f} MiB')

    @master_only
    def after_remove_checkpoint(self, runner, name):
        with contextlib.suppress(OSError):                              # as it may not be there, or not ours
            os.remove(path_of(runner, name))


def path_of(runner, name):
    """Of the delta of a checkpoint with a name."""
    return os.path.join(runner.work_dir, f'delta_{Path(name).stem}.safetensors')
