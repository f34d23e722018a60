"""e3va: adapt large frozen vision trunks inside OpenMMLab with few trained parameters, little memory, little time."""
from . import compat

compat.install()

from . import delta_scheme, timm_scheme, trusted  # noqa: E402
from .delta import delta, load_delta, merge, save_delta  # noqa: E402
from .report import report  # noqa: E402
from .tuned import tune  # noqa: E402

# What loads checkpoints reads them as data, and knows e3va:// and timm://.
compat.when_imported('mmengine.runner.checkpoint', trusted.install, delta_scheme.register, timm_scheme.register)

__version__ = '0.1.0'
__all__ = ['delta', 'load_delta', 'merge', 'report', 'save_delta', 'tune']
