"""When E2VPT prunes, and how it rewinds; `e3va/e2vpt/method.py` says what is pruned."""
import copy
import itertools
from functools import partial

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop
from mmengine.runner.base_loop import BaseLoop

from ..gps.hook import loader_of, task_loss, told
from ..methods.base import choice, integer, number
from ..registry import HOOKS
from ..train.change import change, common_seed, plain, rewrap
from ..train.recorded import same_options
from ..train.rng_state import random_state, set_random_state
from ..tuned import find_tuned
from .method import E2VPT, importance, prompts_of, prune, pruned, survivors

KEY = 'e3va_e2vpt'                                                      # of the hook's entry in a checkpoint
SAME = ('tokens', 'segments', 'importance', 'batches')                  # options that a resumed run shares


@HOOKS.register_module()
class E2VPTHook(Hook):
    """Train as long as the config says, prune, rewind all that trains to its start, and train as long again.

    So the run is twice as long. What starts again: prompts, neck and head, the optimizer, its schedule, averages of
    weights. Importance is that of the training data, in eval mode, by the loss that is trained.

    Args:
        tokens, segments (float): shares that are cut. The paper takes the best of 10 % to 90 % of each, for each task.
        importance (str): 'absolute', the paper's formula, or 'signed', its public code.
        batches (int): at most so many batches, drawn at random, in each process. Default: all of the data, once.
    """

    priority = 'HIGHEST'                                                # before the rate is logged and EMAHook loads

    def __init__(self, tokens=0.5, segments=0.5, importance='absolute', batches=None):
        self.tokens, self.segments = number('tokens', tokens, 0, 1), number('segments', segments, 0, 1)
        if not tokens and not segments:
            raise ValueError('E2VPTHook(tokens=0, segments=0) cuts nothing: give shares, or train without the hook')
        self.importance = choice('importance', importance, ('absolute', 'signed'))
        self.batches = batches if batches is None else integer('batches', batches)
        self.stage = None                                               # 1 or 2; None: not a training

    # ---- before the first step

    def before_run(self, runner):
        if self.stage or not isinstance(runner._train_loop, BaseLoop):  # only tested
            return
        method, loop = find_tuned(plain(runner.model))[1].tuning.method, runner.train_loop
        if not isinstance(method, E2VPT):
            raise ValueError(f'E2VPTHook prunes the prompts of E2VPT, and the model has {type(method).__name__}: drop '
                             "the hook, or take method=dict(type='E2VPT')")
        self.stage, self.iterates, self.start = 1, isinstance(loop, IterBasedTrainLoop), None
        self.end_iter, self.end = loop.max_iters, loop.max_iters if self.iterates else loop.max_epochs
        loop._max_iters *= 2
        if not self.iterates:
            loop._max_epochs *= 2
        runner.logger.info(f'E2VPT: pruned and rewound after {"iteration" if self.iterates else "epoch"} {self.end}, '
                           'then as long again')

    def before_train(self, runner):
        if self.stage == 1 and pruned(find_tuned(plain(runner.model))[1]):
            raise ValueError('the weights to start from are pruned already: load them into a run without E2VPTHook, '
                             'or resume the run that they are of')
        if self.stage == 1 and self.start is None:
            self.start = start_of(runner)
        self.count(runner)

    def count(self, runner):
        """Let each stage flush the gradients that it has accumulated at its end."""
        start, end = (0, self.end_iter) if self.stage == 1 else (self.end_iter, runner.max_iters)
        runner.optim_wrapper.initialize_count_status(runner.model, runner.iter - start, end - start)

    # ---- the boundary

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.stage == 1 and (runner.iter if self.iterates else runner.epoch) >= self.end:
            left = survivors(*self.scores(runner), self.tokens, self.segments)
            self.rewind(runner, partial(renew, self.start['state'], left))
            self.count(runner)
            if is_model_wrapper(runner.model):
                runner._maybe_compile('train_step')                     # of the new one
        runner.message_hub.update_scalar('train/stage', self.stage)

    def scores(self, runner):
        """`importance` on the training data, which the training goes on to see as it would without."""
        model, state = plain(runner.model), random_state()
        model.eval()
        try:
            loader = loader_of(runner.train_dataloader, 1, None, None, common_seed(runner))
            length = min(len(loader), self.batches or len(loader))
            runner.logger.info(f'E2VPT: importance of prompts on {length} batches of training data')
            batches = told(itertools.islice(loader, length), length, runner.logger, 'E2VPT')
            return importance(model, batches, partial(task_loss, model), self.importance)
        finally:
            model.train()
            set_random_state(state)

    def rewind(self, runner, function):
        """The second stage: `function` changes the model and its averages; optimizer and schedule start again."""
        self.stage = 2
        change(runner, function)
        wrapper = runner.optim_wrapper
        wrapper.optimizer.state.clear()
        if self.start is not None:
            for group, start in zip(wrapper.param_groups, self.start['groups']):
                group.update(start)
            for scheduler, start in zip(schedulers(runner), self.start['schedule']):
                scheduler.load_state_dict(copy.deepcopy(start))
            for hook in runner.hooks:
                if hasattr(hook, 'ema_model'):
                    hook.ema_model.steps.zero_()                        # the first average is a copy
        rewrap(runner)
        self.start = None
        trunk = find_tuned(plain(runner.model))[1]
        first = next(iter(prompts_of(trunk).values()))
        method = trunk.tuning.method
        runner.logger.info(f'E2VPT: second stage from iteration {self.end_iter + 1} to {runner.max_iters}, with '
                           f'{len(first.tokens)} of {method.tokens} prompts and {first.tokens.shape[1]} of '
                           f'{method.segments} segments of each')

    def after_train(self, runner):
        if self.stage == 1:
            runner.logger.warning(f'E2VPT: the training was stopped after iteration {runner.iter}, in its first stage, '
                                  'so nothing has been pruned. Drop what stops it, e.g. EarlyStoppingHook')

    # ---- checkpoints

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint[KEY] = dict(stage=self.stage, end=self.end, start=self.start,
                               options={name: getattr(self, name) for name in SAME})

    def after_load_checkpoint(self, runner, checkpoint):
        """Before a resumed state is loaded: bring model, averages and stage into its shape."""
        if self.stage is None or not runner._resume:
            return
        saved = checkpoint.get(KEY)
        if not saved:
            raise ValueError('the checkpoint to resume is not one of E2VPT: it has no record of its stage')
        same_options(dict(saved['options'], end=saved['end']), vars(self),
                     'the checkpoint is of a run with {theirs}, and this config has {ours}: resume with the former')
        self.start = saved['start']
        if saved['stage'] == 2:
            prefix, _ = find_tuned(plain(runner.model))
            given = {name.removeprefix(prefix): value for name, value in checkpoint['state_dict'].items()
                     if name.startswith(prefix)}
            self.rewind(runner, lambda model: trunk_of(model).tuning.method.expect(trunk_of(model), given))


def trunk_of(model):
    return find_tuned(model)[1]


def start_of(runner):
    """What a run starts from, on the CPU: what trains and all buffers, groups of the optimizer, schedule."""
    model = plain(runner.model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained |= {name for name, _ in model.named_buffers()}
    return dict(
        state={name: value.detach().cpu().clone() for name, value in model.state_dict().items() if name in trained},
        groups=[{name: value for name, value in group.items() if name != 'params'}
                for group in copy.copy(runner.optim_wrapper.param_groups)],
        schedule=[copy.deepcopy(scheduler.state_dict()) for scheduler in schedulers(runner)])


def schedulers(runner):
    found = runner.param_schedulers or []
    return [one for each in found.values() for one in each] if isinstance(found, dict) else found


def renew(state, left, model):
    """Give a model its start again, without what is pruned."""
    own = model.state_dict()
    for name, value in state.items():
        own[name].copy_(value)
    prune(trunk_of(model), *left)
