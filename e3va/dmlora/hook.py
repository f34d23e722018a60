"""When DMLoRA draws, halves and changes its stage; `e3va/dmlora/method.py` says how."""
from mmengine.hooks import Hook, LoggerHook
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop
from mmengine.runner.base_loop import BaseLoop
from torch.nn.modules.batchnorm import _BatchNorm

from ..methods.base import choice, integer, length, number
from ..registry import HOOKS
from ..train.change import change, common_seed, epoch_length, length_said, part_of, plain, rewrap
from ..train.recorded import same_options
from ..train.retire import retire
from ..trunks import head_entries
from ..tuned import find_tuned
from .method import DMLoRA, average, check_start, draw, halve, mixtures, resize, scaled
from .optim import BranchMixin

KEY = 'e3va_dmlora'                                                     # of the hook's entry in a checkpoint
# Options of method and hook that a resumed run shares with the interrupted one, and with its second stage.
SAME = ('rank', 'branches', 'scale', 'roles', 'share', 'learn_scale', 'by_epoch', 'halving')
SECOND = ('scale_length', 'scale_lr', 'scale_schedule', 'train_head')


@HOOKS.register_module()
class DMLoRAHook(Hook):
    """Draw branches at every step, halve them every k epochs, and then train the scales alone.

    Everything is a function of the run's seed and of where the run is, so that a resumed run is the interrupted one.
    The second stage comes behind the epochs (or iterations) of the config and makes the run that much longer: the
    branches become their mean and freeze, with all else but the scales; it has an optimizer and a schedule of its own.

    Args:
        every (int or float): k, after which the branches are halved, again and again; below 1 a share of the run.
        down_to (int): as many branches are left.
        by_epoch (bool): `every` and `scale_length`, if integers, count epochs, also in a loop that counts iterations
            itself; False: iterations.
        halving (str): 'dropout': a random half goes (schemes C, D, E); 'average': each two become their mean (B);
            'none' (A).
        scale_length (int or float): length of the second stage; below 1 a share of the first. The paper has 10 epochs
            behind 100. None: there is none.
        scale_lr (float): its learning rate at the start, 1e-2 in the paper; weight decay is left out.
        scale_schedule (str): 'cosine', down to zero, or 'constant'; the paper does not say.
        train_head (bool): neck and head train on in the second stage, at the rate of their start.
    """

    priority = 'HIGHEST'                                                # before the rate is logged and EMAHook loads

    def __init__(self, every=0.1, down_to=1, by_epoch=True, halving='dropout', scale_length=0.1, scale_lr=1e-2,
                 scale_schedule='cosine', train_head=False):
        self.every = length('every', every)
        self.down_to = integer('down_to', down_to)
        self.by_epoch = choice('by_epoch', by_epoch, (True, False))
        self.halving = choice('halving', halving, ('dropout', 'average', 'none'))
        if scale_length is not None and scale_length == 0:
            raise ValueError('scale_length is 0: a second stage has at least 1 epoch; for a run without one give None')
        self.scale_length = None if scale_length is None else length('scale_length', scale_length)
        self.scale_lr = number('scale_lr', scale_lr, low=1e-9)
        self.scale_schedule = choice('scale_schedule', scale_schedule, ('cosine', 'constant'))
        self.train_head = choice('train_head', train_head, (True, False))
        self.stage = None                                               # 1 or 2; None: not a training
        self.position = 0                                               # of the last step of stage 1, in `every`'s unit

    # ---- before the first step

    def before_run(self, runner):
        if self.stage or not isinstance(runner._train_loop, BaseLoop):  # only tested
            return
        model, loop = plain(runner.model), runner.train_loop
        self.method = find_tuned(model)[1].tuning.method
        if not isinstance(self.method, DMLoRA) or self.method.hook != 'e3va.DMLoRAHook':      # AdaMix has its own
            raise ValueError(f'DMLoRAHook is for the method DMLoRA, and the model has {type(self.method).__name__}; '
                             'drop the hook')
        if not isinstance(runner.optim_wrapper, BranchMixin):
            raise ValueError(f'DMLoRA needs an optimizer wrapper that knows of branches, not '
                             f'{type(runner.optim_wrapper).__name__}: set '
                             "optim_wrapper.type='e3va.DMLoRAOptimWrapper', or 'e3va.AmpDMLoRAOptimWrapper'")
        if self.scale_length and self.method.learn_scale:
            raise ValueError('the scales are learned twice: the method has learn_scale=True (1-stage) and DMLoRAHook '
                             f'scale_length={self.scale_length} (2-stage); drop one of them')
        self.stage, self.iterates = 1, isinstance(loop, IterBasedTrainLoop)
        self.plan(runner, loop)
        own = {branch for branches in mixtures(model) for branch in branches.all}
        rewrap(runner, [name for name, parameter in model.named_parameters() if parameter in own])

    def plan(self, runner, loop):
        """Where the halvings lie and where the second stage begins; lengthen the loop by it."""
        epoch = epoch_length(runner)
        each = epoch if self.by_epoch and self.iterates else 1          # of what the loop counts, in our unit
        self.end = loop.max_iters if self.iterates else loop.max_epochs
        self.end_iter = loop.max_iters
        self.period = part_of(self.every, self.end_iter, each)
        log, count, every = runner.logger, self.method.branches, length_said(self.every, self.by_epoch)
        if self.halving == 'none':
            log.info(f'DMLoRA: {count} branches to the end of the training')
        else:
            if count % self.down_to or (count // self.down_to) & (count // self.down_to - 1):
                raise ValueError(f'{count} branches cannot be halved to down_to={self.down_to}: take branches='
                                 f'{self.down_to} times a power of 2, e.g. {4 * self.down_to} or {8 * self.down_to}')
            log.info(f'DMLoRA: {count} branches, halved every {every} down to {self.down_to} '
                     f'({self.halving})')
            left = self.wanted((self.end if self.counts_epochs or self.iterates else self.end_iter) - 1)
            if left > self.down_to:
                log.warning(f'DMLoRA: every={every} is too long for this run to come down to '
                            f'{self.down_to}: it ends with {left} of {count} branches. Take a smaller `every`, e.g. '
                            '0.1 of the run, or a longer run')
        if self.scale_length:
            extra = part_of(self.scale_length, self.end, each)
            if not (isinstance(self.scale_length, float) or self.by_epoch or self.iterates):
                extra, rest = divmod(extra, epoch)
                if rest:
                    raise ValueError(f'scale_length={self.scale_length} iterations are no whole epochs of {epoch}, '
                                     'and this loop counts epochs: give a multiple, or by_epoch=True')
            loop._max_iters += extra if self.iterates else extra * epoch
            if not self.iterates:
                loop._max_epochs += extra
            unit = 'iteration' if self.iterates else 'epoch'
            log.info(f'DMLoRA: the second stage, {extra} {unit}s that train the scales alone, begins after {unit} '
                     f'{self.end}')

    @property
    def counts_epochs(self):
        return self.by_epoch and not self.iterates and not isinstance(self.every, float)

    def wanted(self, position):
        """Branches at an epoch, or at an iteration where `every` counts these or is a share."""
        if self.halving == 'none':
            return self.method.branches
        return max(self.method.branches >> min(position // self.period, 64), self.down_to)

    def before_train(self, runner):
        self.seed = common_seed(runner)
        self.count(runner)

    def count(self, runner):
        """Let each stage flush the gradients that it has accumulated at its end."""
        start, end = (0, self.end_iter) if self.stage == 1 else (self.end_iter, runner.max_iters)
        runner.optim_wrapper.initialize_count_status(runner.model, runner.iter - start, end - start)

    # ---- steps

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = plain(runner.model)
        if self.stage == 1 and self.scale_length and (runner.iter if self.iterates else runner.epoch) >= self.end:
            self.second_stage(runner)
            self.count(runner)
            if is_model_wrapper(runner.model):
                runner._maybe_compile('train_step')                     # of the new one
        if self.stage == 1:
            self.position = runner.epoch if self.counts_epochs else runner.iter
            while active(model) > self.wanted(self.position):
                self.change(runner, lambda model: halve(model, self.halving, self.seed))
                runner.logger.info(f'DMLoRA: branches halved to {active(model)} from iteration {runner.iter + 1} on '
                                   f'({self.halving})')
        draw(model, runner.iter, self.seed)
        if self.stage == 2 and not self.train_head:
            for module in self.frozen_norms:                            # the loop has put them in training mode
                module.training = False
        runner.message_hub.update_scalar('train/branches', active(model))
        runner.message_hub.update_scalar('train/stage', self.stage)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.stage == 2 or self.method.learn_scale:
            interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 10)
            if self.every_n_train_iters(runner, interval) or self.is_last_train_iter(runner):
                runner.visualizer.add_scalars(scales(plain(runner.model)), step=runner.iter + 1)

    def after_train(self, runner):
        if self.stage == 1 and self.scale_length:
            runner.logger.warning(f'DMLoRA: the training was stopped after iteration {runner.iter}, in its first '
                                  'stage, so the scales have not been trained. Drop what stops it, e.g. '
                                  'EarlyStoppingHook, or give scale_length=None')

    def change(self, runner, function):
        """Apply `function`, which changes branches and returns what is gone, to the model and to its averages."""
        retire(runner.optim_wrapper.optimizer, change(runner, function))

    def second_stage(self, runner):
        """Freeze the branches' mean and train the scales alone, by a new optimizer on a new schedule."""
        self.stage = 2
        self.change(runner, average)
        model = plain(runner.model)
        prefix, trunk = find_tuned(model)
        inside = {f'{prefix}{name}' for name in head_entries(trunk)}    # a timm classifier's
        own = [layer.scale for layer in scaled(model).values()]
        others = [parameter for name, parameter in model.named_parameters()
                  if self.train_head and parameter.requires_grad
                  and (name in inside or not name.startswith(prefix))]
        left = {*own, *others}
        for parameter in model.parameters():
            parameter.requires_grad_(parameter in left)
        rewrap(runner)                                                  # makes each norm anew under sync_bn
        self.frozen_norms = [module for module in plain(runner.model).modules() if isinstance(module, _BatchNorm)]
        runner.optim_wrapper.restart(own, others, self.scale_lr)
        schedule = dict(type='CosineAnnealingLR', by_epoch=False, end=runner.max_iters - self.end_iter, eta_min=0.)
        runner.param_schedulers = runner.build_param_scheduler([schedule] if self.scale_schedule == 'cosine' else [])
        runner.logger.info(f'DMLoRA: second stage from iteration {self.end_iter + 1} to {runner.max_iters}: the '
                           f'branches are frozen, {sum(scale.numel() for scale in own)} scales train at '
                           f'{self.scale_lr}{" with neck and head" if others else ""}')

    # ---- checkpoints

    def before_save_checkpoint(self, runner, checkpoint):
        names = SAME + SECOND if self.stage == 2 else SAME
        checkpoint[KEY] = dict(options={name: self.options[name] for name in names}, stage=self.stage, end=self.end,
                               active=active(plain(runner.model)), position=self.position)

    @property
    def options(self):
        return vars(self.method) | vars(self)

    def after_load_checkpoint(self, runner, checkpoint):
        """Before a resumed state is loaded: bring model, optimizer and schedule into its shape."""
        if self.stage is None:
            return
        saved = checkpoint.get(KEY)
        if not runner._resume:
            check_start(plain(runner.model), checkpoint.get('state_dict', checkpoint), 'load_from')
            return
        if not saved:
            raise ValueError('the checkpoint to resume is not one of DMLoRA: it has no record of branches and stage')
        same_options(saved.get('options', {}), self.options,            # none in checkpoints of before
                     'the checkpoint is of a run with {theirs}, and this config has {ours}: resume with the former')
        self.position = saved['position']
        if saved['stage'] == 2:
            if saved['end'] != self.end:
                raise ValueError('the checkpoint is of a second stage that began after '
                                 f'{saved["end"]} {"iterations" if self.iterates else "epochs"}, and by this config it '
                                 f'begins after {self.end}: resume with the same train_cfg')
            self.second_stage(runner)
            return
        if self.scale_length and checkpoint['meta']['iter'] > self.end_iter:
            raise ValueError(f'the checkpoint is of iteration {checkpoint["meta"]["iter"]} of a first stage, and by '
                             f'this config the second stage begins after {self.end_iter}: resume with a longer '
                             'train_cfg, or with scale_length=None')
        wanted = self.wanted(saved['position'])
        if saved['active'] != wanted:
            raise ValueError(f'the checkpoint has {saved["active"]} branches left, and by this config there would be '
                             f'{wanted}: resume with the same every, by_epoch, down_to and halving')
        self.change(runner, lambda model: [(parameter, None) for branches in mixtures(model) if len(branches) > 1
                                           for parameter in resize(branches, saved['active'])])


def active(model):
    """Branches that a model has now; a shared factor has one."""
    return max(map(len, mixtures(model)))


def scales(model):
    """{'scale/LAYER.ROLE': value} of every adapted matrix."""
    return {f'scale/{name}' + (f'.{"qkv"[part]}' if layer.of == 3 else f'.{part}' if layer.of > 1 else ''): value
            for name, layer in scaled(model).items() for part, value in zip(layer.slices, layer.scale.tolist())}
