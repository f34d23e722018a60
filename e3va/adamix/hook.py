"""When AdaMix draws, and the second pass that its consistency is of; `e3va/adamix/method.py` says how."""
from functools import partial

import torch
from mmengine.hooks import Hook
from mmengine.runner.base_loop import BaseLoop

from ..dmlora.method import AGAIN, draw, mixtures
from ..dmlora.optim import BranchMixin
from ..methods.base import number
from ..registry import HOOKS
from ..surgery import called, unwrap, wrap
from ..train.change import common_seed, plain, rewrap
from ..tuned import find_tuned
from .method import AdaMix, divergence

HEADS = ('head', 'decode_head')         # what gives the logits: of a classifier, of a segmenter


@HOOKS.register_module()
class AdaMixHook(Hook):
    """Draw modules at every step, and add the divergence of a second pass with another draw to the losses.

    Draws are functions of the run's seed and the step, so that a resumed run is the interrupted one, and the same in
    every process.

    Args:
        consistency (float): weight of the divergence, 1 in the paper. It is of the classes' logits, of a classifier's
            `head` or a segmenter's `decode_head`; models without one, such as detectors, take 0: one pass alone.
    """

    priority = 'HIGHEST'

    def __init__(self, consistency=1.):
        self.consistency = number('consistency', consistency, low=0)

    def before_run(self, runner):
        if not isinstance(runner._train_loop, BaseLoop):                # only tested
            return
        model = plain(runner.model)
        method = find_tuned(model)[1].tuning.method
        if not isinstance(method, AdaMix):
            raise ValueError(f'AdaMixHook is for the method AdaMix, and the model has {type(method).__name__}; drop '
                             'the hook')
        if not isinstance(runner.optim_wrapper, BranchMixin):
            raise ValueError(f'AdaMix needs an optimizer wrapper that knows of branches, not '
                             f'{type(runner.optim_wrapper).__name__}: set '
                             "optim_wrapper.type='e3va.DMLoRAOptimWrapper', or 'e3va.AmpDMLoRAOptimWrapper'")
        if self.consistency and not any(hasattr(model, name) for name in HEADS):
            raise ValueError('the consistency is of the logits of a classifier or a segmenter, and '
                             f'{type(model).__name__} has no {" or ".join(HEADS)}: set '
                             'default_hooks.adamix.consistency=0')
        own = {branch for branches in mixtures(model) for branch in branches.all}
        rewrap(runner, [name for name, parameter in model.named_parameters() if parameter in own])

    def before_train(self, runner):
        self.seed = common_seed(runner)
        if self.consistency:
            wrap(plain(runner.model), 'forward', partial(consistent, self.consistency, self))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.iteration = runner.iter
        draw(plain(runner.model), self.iteration, self.seed)

    def after_train(self, runner):
        unwrap(plain(runner.model), consistent)

    def again(self, model):
        """Draw for the second pass of the step."""
        draw(model, self.iteration, self.seed, AGAIN)


def consistent(weight, hook, before, model, *inputs, mode='tensor', **options):
    """The model's forward; of the losses with the divergence of a second pass beside them."""
    run = called(before, model)
    if mode != 'loss':
        return run(*inputs, mode=mode, **options)
    losses, one = noted(model, run, inputs, options)
    hook.again(model)
    _, other = noted(model, run, inputs, options)
    return dict(losses, loss_consistency=weight * divergence(one, other))


def noted(model, run, inputs, options):
    """(losses, logits) of a pass."""
    head, found = next(getattr(model, name) for name in HEADS if hasattr(model, name)), []
    wrap(head, 'forward', partial(note, found))
    try:
        losses = run(*inputs, mode='loss', **options)
    finally:
        unwrap(head, note)
    if len(found) != 1 or not isinstance(found[0], torch.Tensor) or found[0].dim() < 2:
        raise ValueError(f'{type(head).__name__} gives no one tensor of logits (images, classes, ...), which the '
                         'consistency is of: set default_hooks.adamix.consistency=0')
    return losses, found[0]


def note(found, before, head, *inputs, **options):
    out = called(before, head)(*inputs, **options)
    found.append(out)
    return out
