"""One file a method: the paper, its equation, its layer, its class. All files of this folder are imported."""
import importlib
import pkgutil

from ..registry import METHODS
from .base import Method, build_method

__all__ = ['build_method']
for _file in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f'.{_file.name}', __name__)
    for _name, _kind in vars(_module).items():
        if isinstance(_kind, type) and issubclass(_kind, Method) and _kind.__module__ == _module.__name__:
            globals()[_name] = _kind
            __all__.append(_name)


def __getattr__(name):
    """Methods with rooms of their own (E3VA, GPS, DMLoRA) are found here too."""
    METHODS.import_from_location()
    if name in METHODS.module_dict:
        return METHODS.module_dict[name]
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
