"""The optimizer of a mostly frozen model: few groups, few words."""
import contextlib

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS
from ..tuned import find_tuned


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TunedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's rules for rates and decays (`paramwise_cfg`), with one group for each different setting.

    mmengine makes a group for every parameter, which keeps the optimizer from stepping many tensors at once, and logs a
    warning for each one that is frozen: 349 of them for a Swin-L.

    A key of `custom_keys` that names the whole backbone, such as `backbone=dict(lr_mult=0.1)` of Mask2Former and DINO,
    protects pretrained weights. It does not slow down what the method adds, which starts from zero; a key that names
    that (`'backbone.e3va'`) does. (What GPS adds are pretrained weights.)
    """

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
        groups, (prefix, trunk) = collect(), find_tuned(model)
        keys = self.paramwise_cfg.get('custom_keys', {})
        kept = {key: value for key, value in keys.items() if key not in prefix}
        if len(kept) == len(keys) or trunk.tuning.method.tunes_entries:
            return groups
        added = {parameter for name, parameter in trunk.named_parameters() if name not in trunk.tuning.keys}
        try:
            self.paramwise_cfg['custom_keys'] = kept
            own = {group['params'][0]: group for group in collect() if group['params'][0] in added}
        finally:
            self.paramwise_cfg['custom_keys'] = keys
        return [own.get(group['params'][0], group) for group in groups]


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
