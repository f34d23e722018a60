"""e3va: adapt large frozen vision trunks inside OpenMMLab with few trained parameters, little memory, little time."""
from . import compat

compat.install()

from . import serve  # noqa: E402
from .delta import scheme  # noqa: E402
from .delta.approximate import extract  # noqa: E402
from .delta.extract import delta, save_delta  # noqa: E402
from .delta.load import load_delta  # noqa: E402
from .delta.merge import merge  # noqa: E402
from .delta.mix import blend  # noqa: E402
from .files import checkpoint  # noqa: E402
from .files.checkpoint import trusting  # noqa: E402
from .models import timm_scheme  # noqa: E402
from .report import report  # noqa: E402
from .tuned import tune  # noqa: E402

# What loads checkpoints reads them as data, and knows e3va:// and timm://.
compat.when_imported('mmengine.runner.checkpoint', checkpoint.install, scheme.register, timm_scheme.register)

__version__ = '0.1.0'
__all__ = ['blend', 'delta', 'extract', 'load_delta', 'merge', 'report', 'save_delta', 'serve', 'trusting', 'tune']
