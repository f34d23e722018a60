"""Write a delta beside every checkpoint."""
import os

from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from .. import delta_file
from ..delta import delta, describe
from ..layers.quantised import quantised_entries
from ..registry import HOOKS


@HOOKS.register_module()
class DeltaHook(Hook):
    """Beside each checkpoint `epoch_N.pth` (or `iter_N.pth`) write `delta_epoch_N.safetensors`.

    It holds what the checkpoint holds (under EMAHook the averaged weights), less the frozen trunk. Training is resumed
    from the checkpoint; the delta is for keeping, sharing and inference (`e3va://FILE`).

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

    def before_save_checkpoint(self, runner, checkpoint):
        from mmengine.model import is_model_wrapper
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        meta = checkpoint['meta']
        base = self.base or runner.message_hub.get_info('delta_base')
        path = os.path.join(runner.work_dir, f'delta_{count(runner, meta)}.safetensors')
        delta_file.write(path, {name: checkpoint['state_dict'][name] for name in delta(model)},
                         describe(model, base, meta.get('dataset_meta')), quantised_entries(model))
        runner.logger.info(f'delta: {path}, {os.path.getsize(path) / 2 ** 20:.2f} MiB')


def count(runner, meta):
    """`epoch_N` or `iter_N` as in the checkpoint's name: the runner is one behind in what CheckpointHook counts by.

    In neither for the best checkpoint: that is named by the loop.
    """
    for unit in ('epoch', 'iter'):
        if meta[unit] == getattr(runner, unit) + 1:
            return f'{unit}_{meta[unit]}'
    unit = 'iter' if isinstance(runner.train_loop, IterBasedTrainLoop) else 'epoch'
    return f'{unit}_{meta[unit]}'
