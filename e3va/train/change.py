"""What hooks share that change a model in the middle of its training."""
import gc

from mmengine.dataset import InfiniteSampler
from mmengine.dist import broadcast_object_list, get_world_size
from mmengine.model import is_model_wrapper
from torch.nn.parallel import DistributedDataParallel

from ..tuned import find_tuned
from .retire import retire


def plain(model):
    """A model without DDP around it."""
    return model.module if is_model_wrapper(model) else model


def epoch_length(runner):
    """Iterations of an epoch in each process: an `InfiniteSampler` has the length of the whole data set in all."""
    loader = runner.train_dataloader
    sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    return -(-len(loader) // (get_world_size() if isinstance(sampler, InfiniteSampler) else 1))


def part_of(value, whole, unit):
    """A length that an option gives: so many units, or, a float, that share of the whole, at least 1."""
    return max(1, round(value * whole)) if isinstance(value, float) else value * unit


def length_said(value, by_epoch):
    """The same for a message, e.g. '10 epochs' or '0.1 of the run'."""
    return f'{value} {"of the run" if isinstance(value, float) else "epochs" if by_epoch else "iterations"}'


def common_seed(runner):
    """The run's seed, the same in every process, as the runner's may differ by rank (diff_rank_seed)."""
    seed = [runner.seed]
    broadcast_object_list(seed)
    return seed[0]


def change(runner, function):
    """function(model), for the model and for its moving averages; returns what it gives for the model."""
    found = function(plain(runner.model))
    for hook in runner.hooks:
        averaged = getattr(hook, 'ema_model', None)
        if averaged is not None:
            function(averaged.module)
            averaged.avg_parameters = (averaged.module.state_dict() if averaged.update_buffers else
                                       dict(averaged.module.named_parameters()))
    return found


def rewrap(runner, ignored=()):
    """Renew DDP, which looks at its parameters only once.

    Args:
        ignored (list of str): names of parameters that it is to leave alone.
    """
    if is_model_wrapper(runner.model):
        model = runner.model = runner.model.module
        gc.collect()                                                    # the old wrapper holds nodes of the old shapes
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(ignored))
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)


def settle(runner, function):
    """Change the trunk and its averages by `function`; optimizer and DDP follow where parameters go."""
    change(runner, lambda model: function(find_tuned(model)[1]))
    held, optimizer = set(runner.model.parameters()), runner.optim_wrapper.optimizer
    gone = [(one, None) for group in optimizer.param_groups for one in group['params'] if one not in held]
    if gone:
        retire(optimizer, gone)
        rewrap(runner)
