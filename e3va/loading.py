"""Every load of weights into a tuned trunk is watched: counted, reported, and refused if it would leave it random."""
import dataclasses

from mmengine.logging import print_log

from .surgery import rebind, unbind


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
    trunk.register_load_state_dict_pre_hook(before)
    trunk.register_load_state_dict_post_hook(after)


def init_weights(trunk):
    """The stock `init_weights`; where it stumbles over the names in a checkpoint, an error that says so."""
    loads, done = len(trunk.tuning.loads), getattr(trunk, '_is_init', False)
    try:
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


def before(trunk, state, prefix, *_):
    """Compare the state dict with the trunk; ValueError if frozen parameters would stay as they were drawn."""
    tuning = trunk.tuning
    given = {name[len(prefix):]: value for name, value in state.items() if name.startswith(prefix)}
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
    shapes = [f'{key} {tuple(given[key].shape)} instead of {tuple(own[key].shape)}' for key in own
              if key in tuning.fresh and key in given and given[key].shape != own[key].shape]
    if shapes:
        raise ValueError(f'the checkpoint has other shapes than the trunk {name}: {shorten(shapes, 3)}. Give the '
                         'checkpoint of this size of trunk')
    left = sorted(tuning.fresh - set(given))
    if left:
        raise ValueError(f'the checkpoint leaves {len(left)} frozen parameters of the trunk {name} at random values: '
                         f'{shorten(left)}. Give the checkpoint of this size of trunk')
    tuning.fresh -= set(given)
    tuning.loads.append(report)
    print_log(f'weights for {name}: {report}', logger='current')


def after(trunk, incompatible):
    """Let the method refresh what derives from the trunk's values."""
    trunk.tuning.method.loaded(trunk, frozenset(trunk.tuning.loads[-1].added_missing))


def unwatch(trunk):
    """Undo `watch`."""
    if getattr(trunk.__dict__.get('init_weights'), 'func', None) is init_weights:
        unbind(trunk, 'init_weights')
    for hooks in (trunk._load_state_dict_pre_hooks, trunk._load_state_dict_post_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, 'hook', hook) in (before, after):
                del hooks[key]
