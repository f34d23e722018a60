"""When Pear looks at the gradients and when it prunes; `e3va/pear/plan.py` says how."""
import math
from functools import partial

import torch
from mmengine.dist import all_reduce, broadcast
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner.base_loop import BaseLoop

from ..delta.load import differences
from ..methods.base import choice, length, number
from ..methods.routing import KEY, follow_routing, routing_of, table_of
from ..registry import HOOKS
from ..train.change import common_seed, epoch_length, length_said, part_of, plain, settle
from ..train.recorded import same_options
from ..tuned import find_tuned
from . import plan as pear
from .optim import MomentsMixin


@HOOKS.register_module()
class PearHook(Hook):
    """After a warm-up prune the units that contribute least and share the best ones with their positions.

    The contributions come from the gradients of the warm-up's last epoch. What is shared is one parameter with one
    state of the optimizer, which goes on as it is; schedules go on too.

    Args:
        warmup (int or float): length of the warm-up; below 1 a share of the run. The paper has 10 epochs of 100.
        ratio (float): of the units that are pruned; 0.5 in the paper. 0, and what is less than one unit: none, the
            training is the method's own.
        by_epoch (bool): `warmup` counts epochs, also in a loop that counts iterations itself; False: iterations.
        criterion (str): what a unit's contribution is, with the mean g of its gradients: 'taylor', the sum of |w g|;
            'taylor_sum', |sum of w g|; 'fisher', the sum of w^2 times the mean of the squared gradients; 'gradient', of
            |g|; 'magnitude', of |w|; 'random'.
        checkpoint (str): the paper's knowledge checkpoint of what is pruned: 'da', 'sba' or None.
        coefficients (sequence of float or str): C_1 and C_2 of 'sba'; 0.5 both in the paper. 'scores': the share of
            the shared and of the pruned unit in the sum of their contributions.
        scope (str): the weakest units go of all ('global') or of each group ('group').
        share_scope (str): a unit serves in place of those of the same shapes ('global', the group), or of the same
            shapes and role ('same_role'). One of each group stays. Default: 'same_role' in a trunk of several stages;
            'global' in one of a single stage, and for E3VA.
        share (bool): False is vanilla pruning: the positions are left without a unit.
    """

    prunes = True                                                       # ReportHook asks a resumed run for it
    priority = 'HIGHEST'                                                # before EMAHook loads

    def __init__(self, warmup=0.1, ratio=0.5, by_epoch=True, criterion='taylor', checkpoint=None,
                 coefficients=(0.5, 0.5), scope='global', share_scope=None, share=True):
        self.warmup = length('warmup', warmup)
        self.ratio = number('ratio', ratio)
        if not 0 <= ratio < 1:
            raise ValueError(f'ratio must be a number of at least 0 and below 1, not {ratio!r}: it is the part of the '
                             'units that is pruned, e.g. 0.5')
        self.by_epoch = choice('by_epoch', by_epoch, (True, False))
        self.criterion = choice('criterion', criterion, (*pear.CRITERIA, 'random'))
        self.checkpoint = choice('checkpoint', checkpoint, (None, 'da', 'sba'))
        self.coefficients = coefficients if coefficients == 'scores' else both(coefficients)
        self.scope = choice('scope', scope, ('global', 'group'))
        self.share_scope = choice('share_scope', share_scope, (None, 'global', 'same_role'))
        self.share = choice('share', share, (True, False))
        if checkpoint and not share:
            raise ValueError(f'checkpoint={checkpoint!r} adds what is pruned to what takes its place, and share=False '
                             'lets nothing take it; drop one of them')
        self.options = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        self.end = None                                                 # iteration of the pruning; None: not a training
        self.idle = False                                               # no unit is to be pruned
        self.done = False

    # ---- before the first step

    def before_run(self, runner):
        if self.end is not None or not isinstance(runner._train_loop, BaseLoop):        # only tested
            return
        method, log = self.units_of(plain(runner.model)), runner.logger
        trunk = find_tuned(plain(runner.model))[1]
        self.share_scope = self.options['share_scope'] = self.share_scope or pear.default_share_scope(trunk)
        if not isinstance(runner.optim_wrapper, MomentsMixin):
            raise ValueError(f'PearHook needs an optimizer wrapper that reads gradients, not '
                             f"{type(runner.optim_wrapper).__name__}: set optim_wrapper.type='e3va.PearOptimWrapper', "
                             "or 'e3va.AmpPearOptimWrapper'")
        epoch, warmup = epoch_length(runner), length_said(self.warmup, self.by_epoch)
        self.end = part_of(self.warmup, runner.max_iters, epoch if self.by_epoch else 1)
        self.begin = max(0, self.end - epoch)
        groups, sizes = pear.alike(trunk, self.share_scope)
        self.idle = not pear.plan(torch.zeros(len(sizes)), groups, sizes, self.ratio, self.scope).wanted
        if self.idle:
            most = max(map(groups.count, groups)) if self.scope == 'group' else len(groups)
            log.warning(f'Pear: ratio={self.ratio:g} prunes nothing: this is a training of plain {method}. Of {most} '
                        f'units the smallest ratio that prunes one is {math.ceil(1e4 / most) / 1e4:g}')
            return
        if self.end >= runner.max_iters:
            raise ValueError(f'the warm-up of Pear, {warmup}, is not shorter than the run, '
                             f'{runner.max_iters} iterations of which an epoch has {epoch}: nothing would be pruned. '
                             'Take a smaller `warmup` or a longer run')
        log.info(f'Pear: {method}, {100 * self.ratio:g} % of the units are pruned after {warmup}, by '
                 f'{self.criterion} of iterations {self.begin + 1} to {self.end}')

    def units_of(self, model):
        """Name of the method; ValueError where there is nothing to prune."""
        trunk = find_tuned(model)[1]
        method = type(trunk.tuning.method).__name__
        if not trunk.tuning.method.units(trunk):
            raise ValueError(f'PearHook prunes methods that are made of equal units, and {method} '
                             f'{trunk.tuning.method.config} is not: take LoRA, AdaptFormer, Adapter, AdapterPfeiffer '
                             'or E3VA (not stacked), or drop the hook')
        return method

    def before_train(self, runner):
        if not self.done and routing_of(find_tuned(plain(runner.model))[1]):
            raise ValueError('load_from is of a run that has pruned already, and a new run begins with all units: give '
                             'the weights of the stock trunk, or resume that run')

    # ---- steps

    @property
    def waits(self):
        return self.end is not None and not self.idle and not self.done

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not self.waits:
            return
        if runner.iter >= self.end:
            self.prune(runner, self.choose(runner))
            if is_model_wrapper(runner.model):
                runner._maybe_compile('train_step')                     # of the new one
        elif runner.iter >= self.begin and self.criterion not in pear.WITHOUT_DATA:
            runner.optim_wrapper.watch(factors(runner.model))

    def choose(self, runner):
        """The plan, the same in every process."""
        trunk = find_tuned(plain(runner.model))[1]
        units, wrapper = trunk.tuning.method.units(trunk), runner.optim_wrapper
        scores = pear.score(list(units.values()), self.criterion, wrapper.moments(), common_seed(runner)) if (
            wrapper.steps or self.criterion in pear.WITHOUT_DATA) else torch.zeros(len(units))
        all_reduce(scores, op='mean')
        broadcast(scores)
        if not scores.isfinite().all():
            raise ValueError('Pear cannot prune: the contributions are not finite; the training has diverged in its '
                             'warm-up, look at its loss and take a smaller rate')
        if not scores.any():
            raise ValueError(f'Pear cannot prune: no unit has a gradient in the iterations {self.begin + 1} to '
                             f'{self.end}, so all contributions are 0. Do the units train (rate above 0, a step within '
                             "these iterations), and is a loss reached from them? criterion='magnitude' needs none")
        wrapper.watch([])
        groups, sizes = pear.alike(trunk, self.share_scope)
        if self.criterion == 'random':
            sizes = [1] * len(sizes)                                    # a draw is none of entries
        return pear.plan(scores, groups, sizes, self.ratio, self.scope, self.share)

    def prune(self, runner, chosen):
        """Carry out a plan, and say so."""
        before = trained_bytes(runner)
        settle(runner, lambda trunk: pear.prune(trunk, chosen, self.checkpoint, self.coefficients))
        self.done = True
        runner.logger.info('Pear: weights, gradients and optimizer state of method and heads: '
                           f'{before:,} bytes in the warm-up, {trained_bytes(runner):,} from here on')
        self.tell(runner, chosen)

    def tell(self, runner, chosen):
        """The log and the picture of who serves whom."""
        from .picture import draw  # matplotlib takes a second

        trunk, log = find_tuned(plain(runner.model))[1], runner.logger
        rows = pear.rows(trunk)
        log.info(f'Pear: {len(chosen.pruned)} of {len(rows)} units are pruned before iteration {runner.iter + 1}'
                 f'{f", with {self.checkpoint.upper()}" if self.checkpoint else ""}; contributions '
                 f'{"per entry " if rows[0]["per_entry"] else ""}in brackets')
        if len(chosen.pruned) < chosen.wanted:
            log.warning(f'Pear: {chosen.wanted} were to be pruned; of each group of equal units one stays')
        scores = {row['name']: row['score'] for row in rows}
        for row in (rows[i] for i in chosen.pruned):
            by = row['served_by']
            log.info(f'Pear: {row["name"]} ({row["score"]:.3g}) is pruned, '
                     + (f'served by {by} ({scores[by]:.3g})' if by else 'served by none'))
        try:
            runner.visualizer.add_image('pear', draw(rows), step=runner.iter)
        except OSError as error:
            log.error(f'Pear: the run goes on without this picture, which cannot be written: {error}')

    # ---- checkpoints

    def before_save_checkpoint(self, runner, checkpoint):
        if self.end is not None:
            wrapper = runner.optim_wrapper
            method = find_tuned(plain(runner.model))[1].tuning.method.config
            checkpoint[KEY] = dict(options=self.options, method=method, done=self.done, steps=wrapper.steps,
                                   sums=wrapper.sums, begin=self.begin)

    def after_load_checkpoint(self, runner, checkpoint):
        """Before a resumed state is loaded: bring model and optimizer into its shape."""
        if self.end is None or not runner._resume:
            return
        saved = checkpoint.get(KEY)
        if not saved:
            raise ValueError('the checkpoint to resume is not one of Pear: it has no record of the contributions; '
                             'start a new run, or drop the hook')
        prefix, trunk = find_tuned(plain(runner.model))
        theirs, ours = dict(saved['options']), dict(self.options)
        if 'method' in saved:                                           # else of a version that did not record it
            types = saved['method']['type'], trunk.tuning.method.config['type']
            found = differences(saved['method'], trunk.tuning.method) if len(set(types)) == 1 else dict(method=types)
            theirs.update((name, value) for name, (value, _) in found.items())
            ours.update((name, value) for name, (_, value) in found.items())
        same_options(theirs, ours,
                     'the checkpoint to resume is of a run of Pear with {both}: resume with the same options')
        if saved['done']:
            settle(runner, partial(follow_routing, given=table_of(checkpoint['state_dict'], prefix)))
            self.done = True
            return
        begun, at = saved.get('begin', self.begin), checkpoint['meta']['iter']         # none in checkpoints of before
        if begun != self.begin and at > self.begin and self.criterion not in pear.WITHOUT_DATA:
            raise ValueError(f'the checkpoint is of iteration {at} of a run of Pear that sums gradients from iteration '
                             f'{begun + 1} on, and by this config these begin with iteration {self.begin + 1}: resume '
                             'with the same train_cfg, or one whose warm-up is longer')
        if saved['steps'] and begun == self.begin:
            wrapper = runner.optim_wrapper
            wrapper.watch(factors(runner.model))
            wrapper.steps = saved['steps']
            wrapper.sums = [value.to(own.device) for own, value in zip(wrapper.sums, saved['sums'])]


@HOOKS.register_module()
class VanillaPruning(PearHook):
    """The same without sharing: the positions of what is pruned are left without a unit (VP in Table II).

    Args:
        warmup, ratio, by_epoch, criterion, scope: see `PearHook`.
    """

    def __init__(self, warmup=0.1, ratio=0.5, by_epoch=True, criterion='taylor', scope='global'):
        super().__init__(warmup, ratio, by_epoch, criterion, scope=scope, share=False)


def factors(model):
    """The parameters of all units of a model."""
    trunk = find_tuned(plain(model))[1]
    return [one for unit in trunk.tuning.method.units(trunk).values() for one in unit.parameters()]


def trained_bytes(runner):
    """Bytes of what trains, of its gradients and of what the optimizer keeps for it."""
    optimizer = runner.optim_wrapper.optimizer
    held = [one for group in optimizer.param_groups for one in group['params'] if one.requires_grad]
    kept = [value for one in held for value in optimizer.state.get(one, {}).values()
            if isinstance(value, torch.Tensor)]
    return sum(one.numel() * one.element_size() for one in held + held + kept)


def both(coefficients):
    """The option `coefficients` as (C_1, C_2)."""
    if not isinstance(coefficients, (tuple, list)) or len(coefficients) != 2:
        raise ValueError(f"coefficients are C_1 and C_2, e.g. (0.5, 0.5), or 'scores', not {coefficients!r}")
    found = tuple(number('coefficients', value) for value in coefficients)
    if not any(found):
        raise ValueError('coefficients are both 0, which would make every shared unit 0: give e.g. (0.5, 0.5)')
    return found
