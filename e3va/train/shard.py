"""Frozen weights spread over processes, by torch's `fully_shard`: a strategy of mmengine's FlexibleRunner.

    runner_type = 'FlexibleRunner'
    strategy = dict(type='e3va.ShardStrategy')

What is frozen lies in parts on the processes, and is gathered a block at a time for as long as that runs. What trains
is small, so every process has all of it, as under DDP: its gradients are averaged in one message behind each backward.
docs/sharding.md says from which size on that pays.
"""
import time
from functools import partial

import mmengine
import torch
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import broadcast, get_world_size, init_dist, is_distributed, is_main_process
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import save_checkpoint
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ..delta.extract import describe_trunk
from ..registry import STRATEGIES
from ..surgery import rebind, unbind
from ..trunks.mapped import mapping
from ..trunks.recompute import rows
from ..tuned import tuned_trunks


@STRATEGIES.register_module()
class ShardStrategy(DDPStrategy):
    """Shard the frozen part of a tuned model in front of its first training step.

    Until then every process has the whole model, so that loads, resumes and GPS's selection see plain weights. A
    checkpoint is an ordinary one, of any number of processes: the first process writes it, the frozen weights gathered
    an entry at a time. A delta takes what trains, which is there.

    Not for methods that change what trains in the middle of a run (DMLoRA, Pear), nor with EMAHook, whose copy of the
    model is whole.

    Args:
        mapped (bool): no process has the whole trunk in its own memory, nor on its GPU: its weights stay in the
            `.safetensors` file of the backbone's `init_cfg`, where all processes of a machine read the same pages,
            until each takes its part of them. Not for methods that run the trunk before the first step (GPS).
    """

    def __init__(self, *, mapped=False, **options):
        super().__init__(**options)
        self.mapped = mapped

    def build_model(self, model):
        with mapping(self.mapped):
            return super().build_model(model)

    def _setup_distributed(self, launcher='pytorch', backend='nccl', **options):
        if is_distributed():
            return
        if get_device() == 'cpu':
            distributed.init_process_group('gloo')
        else:
            init_dist(launcher, backend, **options)

    def _init_model_weights(self, model):
        if not self.mapped:
            return super()._init_model_weights(model)
        if hasattr(model, 'init_weights'):
            model.init_weights()
        kept = {one.data_ptr() for one in frozen(model)}
        for value in model.state_dict().values():
            if value.data_ptr() not in kept:                            # to write them would copy them
                broadcast(value)
        return model

    def _wrap_model(self, model):
        move(model, get_device(), kept=frozen(model) if self.mapped else ())
        model = revert_sync_batchnorm(model) if get_device() == 'cpu' else self.convert_model(model)
        if get_world_size() > 1:
            rebind(model, 'train_step', first_step)
        return model

    def build_optim_wrapper(self, optim_wrapper, model=None):
        wrapper = super().build_optim_wrapper(optim_wrapper, model)
        if get_world_size() > 1:
            wrapper.backward = partial(averaged, wrapper.backward, model)
        return wrapper

    def save_checkpoint(self, filename, *, save_optimizer=True, save_param_scheduler=True, extra_ckpt=None,
                        callback=None):
        state = whole_state(self.model)
        if not is_main_process():
            return
        found = dict(extra_ckpt or {}, state_dict=state)
        found.setdefault('meta', {}).update(seed=self.seed, time=time.strftime('%Y%m%d_%H%M%S'),
                                            mmengine=mmengine.__version__)
        if save_optimizer and hasattr(self, 'optim_wrapper'):
            found['optimizer'] = self.optim_state_dict()
        if save_param_scheduler and hasattr(self, 'param_schedulers'):
            found['param_schedulers'] = self.scheduler_state_dict()
        if callback is not None:
            callback(found)
        save_checkpoint(found, filename, backend_args=None if '://' in filename else dict(backend='e3va.whole'))


def frozen(model):
    """The frozen parameters of a model's tuned trunks; ValueError for a method that runs those before they spread."""
    for _, trunk in tuned_trunks(model):
        if trunk.tuning.method.hook:
            raise ValueError(f'mapped=True of ShardStrategy is not for {type(trunk.tuning.method).__name__}, which '
                             'needs the whole trunk before its first step: leave it out')
    return [parameter for _, trunk in tuned_trunks(model) for parameter in trunk.parameters()
            if not parameter.requires_grad]


def move(model, device, kept=()):
    """As `model.to(device)`, but some parameters stay where they are."""
    kept = {id(one) for one in kept}
    model._apply(lambda one: one if id(one) in kept else one.to(device))


def blocks(trunk):
    """All blocks of a tuned trunk; of one of no known family the rows of its like."""
    parts = trunk.tuning.parts
    return [block for stage in parts.stages(trunk) for block in stage] if parts else rows(trunk)


def first_step(model, *args, **options):
    """In the place of a model's `train_step`, once."""
    unbind(model, 'train_step')
    shard(model)
    return model.train_step(*args, **options)


def shard(model):
    """Spread what is frozen in a model over all processes: each block of its tuned trunks by itself, then the rest."""
    mesh = init_device_mesh(get_device(), (get_world_size(),))
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad or not parameter.dim()}
    for prefix, trunk in tuned_trunks(model):
        trunk.tuning.described = describe_trunk(prefix, trunk)          # its hash, for deltas: it changes no more
        for block in blocks(trunk):
            fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)


def averaged(backward, model, loss, **options):
    """The backward of an optimizer wrapper, behind which every process has the mean of all gradients."""
    backward(loss, **options)
    kinds = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            kinds.setdefault(parameter.dtype, []).append(parameter)
    for parameters in kinds.values():
        average(parameters)


@torch.no_grad()
def average(parameters):
    """The mean over processes of the gradients of parameters of one type, in one message; one that none has stays None.
    """
    flat = torch.cat([(torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in parameters])
    distributed.all_reduce(flat)
    flat /= get_world_size()
    for one, mean in zip(parameters, flat.split([one.numel() for one in parameters])):
        if one.grad is not None:
            one.grad.copy_(mean.view_as(one))
        elif mean.any():
            one.grad = mean.view_as(one).clone()


def whole_state(model):
    """The state dict of a model whose weights may lie in parts, on the CPU, in the first process; None in the others.

    All processes take part.
    """
    state, main = model.state_dict(), is_main_process()
    for name, value in state.items():
        value = value.full_tensor() if isinstance(value, DTensor) else value
        state[name] = value.detach().cpu() if main else None
    return state if main else None
