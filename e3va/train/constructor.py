"""The optimizer of a mostly frozen model: few groups, few words."""
import contextlib
import copy
import itertools

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS
from ..tuned import tuned_trunks


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TunedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's rules for rates and decays (`paramwise_cfg`), with one group for each different setting.

    mmengine makes a group for every parameter, which keeps the optimizer from stepping many tensors at once, and logs a
    warning for each one that is frozen: 349 of them for a Swin-L.

    A key of `custom_keys` that names the whole backbone, such as `backbone=dict(lr_mult=0.1)` of Mask2Former and DINO,
    protects pretrained weights. It does not slow down what the method adds, which starts from zero; a key that names
    that (`'backbone.e3va'`) does. (What GPS adds are pretrained weights.)

    So does a constructor that gives the first layers lower rates, as those of the libraries for MAE, BEiT and ConvNeXt:
    a config names it by `paramwise_cfg.constructor`, where `command.config.prepare` puts it. It makes the groups; what
    the method adds leaves them for a group at the rate that mmengine's rules give, with the decay that it had there.
    """

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        paramwise_cfg = copy.deepcopy(paramwise_cfg or {})              # some constructors edit theirs
        kind = paramwise_cfg.pop('constructor', None)
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.inner = kind and ROOT.build(dict(type=kind, optim_wrapper_cfg=copy.deepcopy(optim_wrapper_cfg),
                                              paramwise_cfg=copy.deepcopy(paramwise_cfg)))

    def __call__(self, model):
        if self.inner is None:
            return super().__call__(model)
        wrapper = self.inner(model)
        model = getattr(model, 'module', model)
        if chosen := added(model):
            self.at_full_rate(wrapper.optimizer, model, chosen)
        return wrapper

    def at_full_rate(self, optimizer, model, chosen):
        """Move parameters into groups of their own, by mmengine's rules for them; the optimizer has no state yet."""
        rules = {group['params'][0]: group for group in self.single_groups(model, {})}
        base, groups, own = optimizer.defaults, [], {}
        for group in optimizer.param_groups:
            stays = [one not in chosen for one in group['params']]
            for one in (one for one in group['params'] if one in chosen):
                rule = {key: value for key, value in rules[one].items() if key != 'params'}
                settings = {**{key: group[key] for key in base}, 'lr': base['lr'], **rule}
                if 'lr_scale' in group:
                    settings['lr_scale'] = settings['lr'] / base['lr']
                own.setdefault(repr(sorted(settings.items())), dict(settings, params=[]))['params'].append(one)
            lists = [key for key in ('params', 'param_names') if key in group]
            groups.append({**group, **{key: list(itertools.compress(group[key], stays)) for key in lists}})
        optimizer.param_groups = [group for group in groups if group['params']] + list(own.values())
        for group in own.values():
            print_log(f'optimizer: the rates of {type(self.inner).__name__} are for the trunk alone; '
                      f'{len(group["params"])} tensors of the method have lr {group["lr"]:g}, weight_decay '
                      f'{group.get("weight_decay", 0):g}', logger='current')

    def add_params(self, params, module, prefix='', **options):
        if prefix:
            return super().add_params(params, module, prefix, **options)
        groups = {}
        for group in self.single_groups(module, options):
            settings = {key: value for key, value in group.items() if key != 'params'}
            groups.setdefault(repr(sorted(settings.items())), dict(settings, params=[]))['params'] += group['params']
        params += groups.values()
        frozen = sum(not parameter.requires_grad for parameter in module.parameters())
        for group in params:
            settings = ', '.join(f'{key} {value}' for key, value in group.items() if key != 'params')
            print_log(f'optimizer: {len(group["params"])} tensors with {settings or "the default rate and decay"}',
                      logger='current')
        print_log(f'optimizer: {frozen} frozen tensors left out', logger='current')

    def single_groups(self, model, options):
        """mmengine's groups, one for each parameter."""
        def collect():
            groups = []
            with quiet():
                super(TunedOptimWrapperConstructor, self).add_params(groups, model, **options)
            return groups
        groups, new = collect(), added(model)
        keys = self.paramwise_cfg.get('custom_keys', {})
        kept = {key: value for key, value in keys.items()
                if not any(key in prefix for prefix, _ in tuned_trunks(model))}
        if len(kept) == len(keys) or not new:
            return groups
        try:
            self.paramwise_cfg['custom_keys'] = kept
            own = {group['params'][0]: group for group in collect() if group['params'][0] in new}
        finally:
            self.paramwise_cfg['custom_keys'] = keys
        return [own.get(group['params'][0], group) for group in groups]


def added(model):
    """The parameters that methods have added to their trunks, and that are no entries of the trunks' own weights."""
    return {parameter for _, trunk in tuned_trunks(model) for name, parameter in trunk.named_parameters()
            if name not in trunk.tuning.keys and not trunk.tuning.method.is_entry(name)}


@contextlib.contextmanager
def quiet():
    """Drop mmengine's log line for each parameter; warnings of other kinds (duplicates) stay."""
    def keep(record):
        text = record.getMessage()
        return not (text.startswith('paramwise_options') or text.endswith('requires_grad=False'))
    logger = MMLogger.get_current_instance()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
