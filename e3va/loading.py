"""Every load of weights into a tuned trunk is watched: counted, reported, and refused if it would leave it wrong."""
import contextlib
import dataclasses
import json

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .surgery import rebind, unbind, unhook

RECORD, ADDED = 'e3va', 'e3va_added'        # the method and its entries, in torch's metadata of a state dict
# Entries of stock layers: with any other name of its own, what a checkpoint has inside a layer is a method's.
STOCK_LEAVES = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')


@dataclasses.dataclass
class LoadReport:
    """What a load brought to a trunk; names are the trunk's own.

    Attributes:
        matched (int): stock entries that were brought.
        missing (list): stock entries that were not.
        unexpected (list): entries brought under the trunk's name that it does not have.
        added (int), added_missing (list): the same for the method's own entries.
    """

    matched: int
    missing: list
    unexpected: list
    added: int
    added_missing: list

    def __str__(self):
        text = f'trunk: {self.matched} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected'
        if self.added or self.added_missing:
            text += f'; added by the method: {self.added} matched, {len(self.added_missing)} missing'
        for name, entries in (('missing', self.missing), ('unexpected', self.unexpected)):
            if entries:
                text += f'\n  {name}: {shorten(entries)}'
        return text


def shorten(names, most=6):
    """A list of names that fits on a line."""
    names = list(names)
    return ', '.join(names[:most]) + (f', ... ({len(names)} in all)' if len(names) > most else '')


def watch(trunk):
    """Look at every state dict that reaches the trunk, by whichever loader."""
    if hasattr(type(trunk), 'init_weights') and 'init_weights' not in trunk.__dict__:
        rebind(trunk, 'init_weights', init_weights)
    trunk._register_state_dict_hook(after_state_dict)
    trunk.register_load_state_dict_pre_hook(before)
    trunk.register_load_state_dict_post_hook(after)


def record(trunk):
    """A tuned trunk's method, as text."""
    return json.dumps(trunk.tuning.method.config, default=str)


def after_state_dict(trunk, state, prefix, local_metadata):
    """Write the method down where torch keeps the versions of modules, so that any checkpoint says what it is of."""
    local_metadata[RECORD] = record(trunk)
    stock = set(trunk.tuning.keys)
    local_metadata[ADDED] = [name[len(prefix):] for name in state
                             if name.startswith(prefix) and name[len(prefix):] not in stock]


def init_weights(trunk):
    """The stock `init_weights`; where it stumbles over the names in a checkpoint, an error that says so."""
    loads, done = len(trunk.tuning.loads), getattr(trunk, '_is_init', False)
    try:
        with in_floats(trunk):
            type(trunk).init_weights(trunk)
    except (KeyError, IndexError) as error:
        config = getattr(trunk, 'init_cfg', None)
        if not isinstance(config, dict) or 'Pretrained' not in str(config.get('type')):       # a name, or a class
            raise
        raise ValueError(
            f'{config["checkpoint"]} does not hold the weights of a {type(trunk).__module__.partition(".")[0]} '
            f'{type(trunk).__name__} ({type(error).__name__}: {error}). Files of the official Swin repository need '
            'convert_weights=True in mmdet and mmseg, OpenMMLab files must not have it') from error
    if len(trunk.tuning.loads) == loads and not done:                   # values were drawn, not loaded
        trunk.tuning.method.loaded(trunk, frozenset(trunk.state_dict()) - set(trunk.tuning.keys))


@contextlib.contextmanager
def in_floats(trunk):
    """Layers that hold their weight as whole numbers have it in floats in here, and round it in the end.

    A stock `init_weights` draws values into it (mmpretrain's and mmseg's ViTs and BEiTs), in front of a file's, too.
    """
    layers = [layer for layer in trunk.modules() if hasattr(layer, 'to_floats')]
    notes = vars(trunk).get('_params_init_info')                        # mmengine's, where a whole model is at it
    for layer in layers:
        layer.to_floats()
        if notes is not None:
            notes[layer.weight].update(init_info='', tmp_mean_value=layer.weight.mean().cpu())
    try:
        yield
    finally:
        for layer in layers:
            if notes is not None:
                del notes[layer.weight]
            layer.to_levels()


def brought(trunk):
    """Take a trunk that had its weights before it was tuned for one whose weights were loaded."""
    added = sorted(set(trunk.state_dict()) - set(trunk.tuning.keys))
    trunk.tuning.fresh = set()
    trunk.tuning.loads.append(LoadReport(len(trunk.tuning.keys), [], [], 0, added))
    trunk.tuning.method.loaded(trunk, frozenset(added))


def before(trunk, state, prefix, metadata, *_):
    """Compare the state dict with the trunk; ValueError if frozen parameters would stay as they were drawn, or entries
    of a method would be lost.
    """
    tuning = trunk.tuning
    given = {name[len(prefix):]: value for name, value in state.items() if name.startswith(prefix)}
    if odd := [name for name, value in given.items() if not isinstance(value, Tensor)]:
        raise ValueError(f'the checkpoint holds a {type(given[odd[0]]).__name__} and no tensor under {odd[0]}')
    tuning.method.expect(trunk, given)
    own = trunk.state_dict()
    stock = set(tuning.keys)
    report = LoadReport(
        matched=len(stock & set(given)),
        missing=sorted(stock - set(given)),
        unexpected=sorted(set(given) - set(own)),
        added=len((set(own) - stock) & set(given)),
        added_missing=sorted(set(own) - stock - set(given)))
    name = type(trunk).__name__
    if not report.matched:
        raise ValueError(
            f'the checkpoint has no entry of the trunk {name}: it names {shorten(given or state) or "nothing"}, the '
            f'trunk {shorten(tuning.keys, 3)}. Is it for this trunk and library (official Swin files need '
            'convert_weights=True in mmdet and mmseg)? A delta is loaded as e3va://FILE or by e3va.load_delta')
    check_method(trunk, given, own, report, metadata)
    shapes = [key for key in own if key in tuning.fresh and key in given and given[key].shape != own[key].shape]
    if shapes:
        raise ValueError(f'the checkpoint has other shapes than the trunk {name}: {unlike(shapes, given, own)}. '
                         + remedy(given[shapes[0]], own[shapes[0]]))
    left = sorted(tuning.fresh - set(given))
    if left:
        raise ValueError(f'the checkpoint leaves {len(left)} frozen parameters of the trunk {name} at random values: '
                         f'{shorten(left)}. Give the checkpoint of this size of trunk')
    tuning.fresh -= set(given)
    tuning.loads.append(report)
    print_log(f'weights for {name}: {report}', logger='current')


def unlike(names, given, own):
    """Names with both shapes, as part of an error message."""
    return shorten((f'{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}' for name in names), 3)


def remedy(given, own):
    """What to do about a frozen weight of another shape."""
    if given.dim() == own.dim() == 4 and given.shape[2:] == own.shape[2:] and given.shape[0] == own.shape[0]:
        return (f'It is for images of {given.shape[1]} channels, and the trunk is built for {own.shape[1]}: set '
                'in_channels (in_chans in timm) to those of the checkpoint and give it such images')
    return 'Give the checkpoint of this size of trunk'


def check_method(trunk, given, own, report, metadata):
    """ValueError where a checkpoint is of another method, rank or kind: what it learned would be lost without a word.

    Args:
        metadata (dict): of the state dict; it says nothing where it is of a stock trunk, or was written by others.
    """
    method, stock, recorded = type(trunk.tuning.method).__name__, set(trunk.tuning.keys), metadata.get(RECORD)
    was = f'it was trained with {recorded}' if isinstance(recorded, str) else 'it says nothing of its method'
    advice = (f'The model has {record(trunk)}, {was}: build the model with the method and options of the checkpoint, '
              'or merge that first (tools/model_converters/merge_delta.py --stock)')
    if lost := foreign(trunk, report.unexpected, metadata.get(ADDED)):
        raise ValueError(f'the checkpoint has entries of another method than {method}: {shorten(lost, 3)}. {advice}')
    shapes = [name for name in own if name not in stock and name in given and given[name].shape != own[name].shape]
    if shapes:
        raise ValueError(f'the checkpoint has entries of {method} in other shapes: {unlike(shapes, given, own)}. '
                         f'{advice}')
    if report.added and report.added_missing:
        raise ValueError(f'the checkpoint lacks {len(report.added_missing)} entries of {method}: '
                         f'{shorten(report.added_missing, 3)}. {advice}')


def foreign(trunk, names, added):
    """Those of the names that some method has added: the list `added` says, else they lie inside a layer."""
    if isinstance(added, list):
        return [name for name in names if name in added]
    modules = dict(trunk.named_modules())
    found = []
    for name in names:
        parent, _, leaf = name.rpartition('.')
        above = parent
        while above not in modules:
            above = above.rpartition('.')[0]
        layer = modules[above]._parameters and not modules[above]._modules
        inside = above not in trunk.tuning.modules or (layer and (above != parent or leaf not in STOCK_LEAVES))
        if inside and above:
            found.append(name)
    return found


def demand(trunk, what):
    """ValueError where the last load left out entries of a trunk that is to be used, or trained on, as it was saved."""
    if not trunk.tuning.loads:
        return
    report, parameters = trunk.tuning.loads[-1], dict(trunk.named_parameters())
    lacking = report.added_missing + [name for name in report.missing if name in parameters]
    if lacking:
        raise ValueError(f'{what} lacks {len(lacking)} entries of {type(trunk).__name__} tuned by {record(trunk)}: '
                         f'{shorten(lacking, 3)}. It is of another method or of a stock model: give a checkpoint that '
                         'was trained with this one')


def after(trunk, incompatible):
    """Let the method refresh what derives from the trunk's values."""
    trunk.tuning.method.loaded(trunk, frozenset(trunk.tuning.loads[-1].added_missing))
    renew(trunk)


def trains_its_own_way(module):
    """Whether a module has a `train` of its own, by which it may keep for eval what it makes of its parameters."""
    return type(module).train is not nn.Module.train


@torch.no_grad()
def renew(trunk):
    """After its values have changed in eval: have modules make again what they keep for eval."""
    for module in trunk.modules():
        if module is not trunk and trains_its_own_way(module) and not module.training:
            modes = [(below, below.training) for below in module.modules()]
            module.train(True)                                          # timm's drop it there
            module.train(False)
            for below, mode in modes:
                below.training = mode


def unwatch(trunk):
    """Undo `watch`."""
    if getattr(trunk.__dict__.get('init_weights'), 'func', None) is init_weights:
        unbind(trunk, 'init_weights')
    unhook(trunk, before, after, after_state_dict)
