"""The optimizer of a mostly frozen model: few groups, few words."""
import contextlib

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TunedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's rules for rates and decays (`paramwise_cfg`), with one group for each different setting.

    mmengine makes a group for every parameter, which keeps the optimizer from stepping many tensors at once, and logs a
    warning for each one that is frozen: 349 of them for a Swin-L.
    """

    def add_params(self, params, module, prefix='', **options):
        if prefix:
            return super().add_params(params, module, prefix, **options)
        single = []
        with quiet():
            super().add_params(single, module, **options)
        groups = {}
        for group in single:
            settings = {key: value for key, value in group.items() if key != 'params'}
            groups.setdefault(repr(sorted(settings.items())), dict(settings, params=[]))['params'] += group['params']
        params += groups.values()
        frozen = sum(not parameter.requires_grad for parameter in module.parameters())
        for group in params:
            settings = ', '.join(f'{key} {value}' for key, value in group.items() if key != 'params')
            print_log(f'optimizer: {len(group["params"])} tensors with {settings or "the default rate and decay"}',
                      logger='current')
        print_log(f'optimizer: {frozen} frozen tensors left out', logger='current')


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
