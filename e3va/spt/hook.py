"""SPT spends its budget between the loading of the weights and the first step."""
from functools import partial

from ..gps.hook import GPSHook, expect
from ..gps.method import selected, sparse_layers
from ..layers.entries import CHILD, with_entries
from ..registry import HOOKS
from ..train.change import change, plain, rewrap
from ..train.retire import retire
from ..tuned import find_tuned
from .method import SPT, AllottedLinear


@HOOKS.register_module()
class SPTHook(GPSHook):
    """A few batches of training data, and the budget goes to the weights with the largest squared gradients.

    As `GPSHook`, whose data, order and random numbers these are, with its arguments; what the selection leaves out goes
    out of the optimizer, DDP and averages too.

    Args:
        loss (str): 'task', the loss that is trained, as in the paper (cross entropy), or 'supcon'.
        batches (int): 16 in the public code's scripts, in each process; None: all of the data, once.
    """

    def __init__(self, loss='task', batches=16, **options):
        super().__init__(loss=loss, batches=batches, **options)

    def before_train(self, runner):
        model = plain(runner.model)
        _, trunk = find_tuned(model)
        if not isinstance(trunk.tuning.method, SPT):
            raise ValueError(f'SPTHook selects for SPT, and this trunk is tuned by '
                             f"{type(trunk.tuning.method).__name__}: drop the hook, or take method=dict(type='SPT')")
        if selected(trunk):
            runner.logger.info(f'SPT: the selection is there: {self.chosen(trunk)}')
        else:
            self.select(runner, model)
            self.follow(runner, model)
        trunk.tuning.hooked = True

    def follow(self, runner, model):
        """Averages have the same selection, the optimizer and DDP what is left."""
        change(runner, partial(expect, find_tuned(model)[1].state_dict()))
        let_go(runner)

    def after_load_checkpoint(self, runner, checkpoint):
        """The weights to go on from may bring a selection: optimizer and averages follow before theirs come."""
        states = checkpoint.get('state_dict', checkpoint)
        prefix, trunk = find_tuned(plain(runner.model))
        given = {name.removeprefix(prefix): value for name, value in states.items() if name.startswith(prefix)}
        if hasattr(runner, 'optim_wrapper') and isinstance(trunk.tuning.method, SPT) and not selected(trunk):
            change(runner, partial(expect, given))
            let_go(runner)

    def chosen(self, trunk):
        """What was selected, in words."""
        layers = [layer for layer in sparse_layers(trunk).values() if isinstance(layer, AllottedLinear)]
        modules, slices = sum(len(layer.pairs) for layer in layers), sum(layer.of for layer in layers)
        entries = sum(layer.index.numel() for layer in layers)
        vectors = sum(getattr(module, CHILD).index(leaf).numel() for module in with_entries(trunk).values()
                      for leaf in getattr(module, CHILD).leaves)
        return (f'{trunk.tuning.method.module} in {modules} of {slices} matrices, {entries:,} entries of the others, '
                f'{vectors:,} of biases, norms and other layers')


def let_go(runner):
    """What the selection has left out goes out of the optimizer; DDP is made anew."""
    held = set(runner.model.parameters())
    optimizer = runner.optim_wrapper.optimizer
    retire(optimizer, [(one, None) for group in optimizer.param_groups for one in group['params'] if one not in held])
    rewrap(runner)
