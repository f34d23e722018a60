"""The runner of a config; on a machine without accelerators several processes train under gloo."""
import contextlib
import os
from functools import partial

from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import distributed
from torch.nn import SyncBatchNorm

from ..files import whole as files

RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')      # set by the launchers


def alone(cfg):
    """Have the work dir of a run to itself; its first process stands for all. ValueError where another run has it."""
    rank = os.environ.get(RANKS.get(cfg.get('launcher'), ''), 0)
    return files.alone(cfg.work_dir) if int(rank) == 0 else contextlib.nullcontext()


def card(place, count):
    """What CUDA_VISIBLE_DEVICES says to the worker at a place (int): one of the `count` GPUs this process may use."""
    known = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name] or range(count)
    return str(known[place % count])


def build_runner(cfg):
    """mmengine's runner, or the one that the config names by `runner_type`; it trains no epoch without a step."""
    runner = runner_of(cfg)
    runner.build_train_loop = partial(loop_of_steps, runner.build_train_loop)
    return runner


def scores_of(runner, split):
    """The scores on 'val' or 'test' of what a runner has trained.

    As of its `val()` and `test()`, which would begin a run anew: an EMAHook then forgets what it has averaged.
    """
    return (runner.val_loop if split == 'val' else runner.test_loop).run()


def loop_of_steps(build, loop):
    """The train loop of a runner; ValueError where its loader has no batch, which mmengine would train in silence."""
    loop = build(loop)
    with contextlib.suppress(TypeError):                                # a loader that does not know its length
        if not len(loop.dataloader):
            size = getattr(loop.dataloader.batch_sampler, 'batch_size', loop.dataloader.batch_size)
            raise ValueError(
                f'the training set has {len(loop.dataloader.dataset)} images, which make no whole batch of {size} a '
                'process, and drop_last leaves parts out: set train_dataloader.batch_size lower, or drop_last=False')
    return loop


def runner_of(cfg):
    if 'runner_type' in cfg:
        cfg.setdefault('env_cfg', dict(dist_cfg=dict(backend='nccl')))  # FlexibleRunner needs one
        return RUNNERS.build(cfg)
    if cfg.get('launcher', 'none') == 'none' or get_device() != 'cpu':
        return Runner.from_cfg(cfg)
    if cfg.launcher != 'pytorch':
        raise ValueError(f'--launcher {cfg.launcher} needs GPUs, and torch finds none here; several processes on the '
                         'CPU take --launcher pytorch')
    return GlooRunner.from_cfg(cfg)


class GlooRunner(Runner):
    """mmengine's runner asks CUDA for the process's device and hands device ids to DDP; both fail on the CPU."""

    def setup_env(self, env_cfg):
        if not is_distributed():
            distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg, model):
        if any(isinstance(module, SyncBatchNorm) for module in model.modules()):
            print_log('no GPU here: SyncBN needs one and is replaced by BN, whose statistics are those of one process',
                      logger='current')
            model = revert_sync_batchnorm(model)
        defaults = dict(broadcast_buffers=False,
                        find_unused_parameters=self.cfg.get('find_unused_parameters', False))
        return super().wrap_model({**defaults, **(model_wrapper_cfg or {}), 'device_ids': None}, model)
