"""Help the stack to import, and name the combinations that cannot work. `install()` runs when e3va is imported."""
import logging
import re
import sys
from functools import cache, partial
from importlib.abc import MetaPathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# Module -> the distributions that bring it: upstream's names, then the maintained fork's.
DISTRIBUTIONS = dict(
    mmengine=('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    mmcv=('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    mmdet=('mmdet', 'onedl-mmdetection'),
    mmseg=('mmsegmentation', 'onedl-mmsegmentation'),
    mmpretrain=('mmpretrain', 'onedl-mmpretrain'))
_libraries = []  # torch forgets the operators of a Library that nobody holds


def install():
    """Set right what can be, and warn of the rest, one line each.

    Raises:
        ImportError: torch or mmengine is missing.
    """
    missing = [name for name in ('torch', 'mmengine') if find_spec(name) is None]
    if missing:
        message = (f'e3va needs {" and ".join(missing)}: install torch first, then OpenMMLab\'s packages '
                   "(upstream's, or in a clone of e3va the tested forks: pip install --no-build-isolation '.[onedl]')")
        if Path(sys.argv[0]).name == 'e3va' or sys.orig_argv[1:3] == ['-m', 'e3va']:
            sys.exit(message)                                           # the command: no traceback
        raise ImportError(message)
    for problem in problems():
        logging.getLogger(__name__).warning('e3va: %s', problem)
    name_base_packages()
    complete_torchvision()
    when_imported('mmpretrain.utils.dependency', leave_out_multimodal)
    when_imported('yapf.yapflib.yapf_api', format_once)
    when_imported('mmengine.config.utils', read_metafiles_once)
    when_imported('mmengine.config.config', write_what_is_read)
    when_imported('mmengine.logging.logger', keep_debug_quiet)


class WhenImported(MetaPathFinder):
    """Stands in front of the finders until a module is imported, and then calls functions with it.

    mmengine's loaders and hooks cost two seconds to import, which users of timm never need.
    """

    def __init__(self, name, functions):
        self.name, self.functions = name, functions

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_call(module):
            execute(module)
            for function in self.functions:
                function(module)
        spec.loader.exec_module = execute_and_call
        return spec


def when_imported(name, *functions):
    """Call functions with a module: now, if it is imported already, else right after it is."""
    if name not in sys.modules:
        sys.meta_path.insert(0, WhenImported(name, functions))
        return
    for function in functions:
        function(sys.modules[name])


def format_once(yapf_api):
    """Have yapf keep what it has formatted: mmengine has it format a run's config five times, seconds each."""
    real, kept = yapf_api.FormatCode, {}

    def format_code(text, **options):
        key = text, repr(options)
        if key not in kept:
            kept.clear()                                                # a run has one config
            kept[key] = real(text, **options)
        return kept[key]

    yapf_api.FormatCode = format_code


def keep_debug_quiet(module):
    """Have `print_log` leave out what is of level DEBUG and names no logger: mmengine prints it whatever its level.

    The forks say so of a package that nobody needs, into the tables that a tool writes to a file.
    """
    real = module.print_log

    def print_log(msg, logger=None, level=logging.INFO):
        if logger is not None or level > logging.DEBUG:
            real(msg, logger, level)

    for place in (module, sys.modules['mmengine.logging']):             # the package may have taken it already
        if getattr(place, 'print_log', real) is real:
            place.print_log = print_log


def read_metafiles_once(config_utils):
    """Have mmengine keep a library's metafiles: it reads all of them, a hundred, for every `mmdet::` of a config."""
    config_utils.load = cache(config_utils.load)


def write_what_is_read(module):
    """Have mmengine write a config's text so that it reads the same again.

    What is between double braces it takes for the name of a variable, and puts its value there before it runs the
    file: a class that somebody has called so would be code.
    """
    real = module.Config.pretty_text
    module.Config.pretty_text = property(lambda config: real.fget(config).replace('{{', '{\\x7b'), doc=real.__doc__)


def problems():
    """Yield a line for each unsupported combination among the installed packages, without importing them."""
    from mmengine.utils import digit_version
    found = {module: [(name, installed(name)) for name in names if installed(name)]
             for module, names in DISTRIBUTIONS.items()}
    for choices in found.values():
        if len(choices) > 1:
            names = ' and '.join(name for name, _ in choices)
            yield f"{names} overwrite each other's files: uninstall all of them, then install one"

    torch, mmengine = installed('torch'), installed('mmengine')
    if torch and digit_version(torch) < digit_version('2.1'):
        yield f'torch {torch} is too old: install 2.1 or newer'
    # https://github.com/open-mmlab/mmengine/issues/1655
    if torch and mmengine and digit_version(torch) >= digit_version('2.6'):
        yield (f'mmengine {mmengine} cannot load checkpoints under torch {torch} (weights_only): '
               'install torch < 2.6, or onedl-mmengine in its place')

    folders = {module: package_folder(module) for module in DISTRIBUTIONS}
    if not found['mmcv'] or not folders['mmcv']:
        return
    mmcv = found['mmcv'][0][1]
    if not list(folders['mmcv'].glob('_ext*')):
        yield (f'mmcv {mmcv} has no compiled operators, and detectors need them: install mmcv, not mmcv-lite; '
               'where pip compiles it, after torch and with --no-build-isolation')
    for module in ('mmdet', 'mmseg', 'mmpretrain'):
        if folders[module]:
            lowest, limit = mmcv_range(folders[module])
            if limit and not digit_version(lowest) <= digit_version(mmcv) < digit_version(limit):
                yield f'{module} takes mmcv >= {lowest}, < {limit}, and mmcv {mmcv} is installed: change one of them'


def installed(distribution):
    """The version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def package_folder(module):
    """Where a package lies, found without importing it; None when it is missing (or is a mere folder of that name)."""
    spec = find_spec(module)
    return Path(spec.origin).parent if spec and spec.origin else None


def mmcv_range(folder):
    """The lowest and the first too high version of mmcv that a library's `__init__.py` asserts, or None and None."""
    text = (folder / '__init__.py').read_text()
    found = [re.search(rf"^mmcv_{end}\w* = '(.+)'", text, re.I | re.M) for end in ('min', 'max')]
    return [match and match[1] for match in found]


def name_base_packages():
    """Make `_base_ = 'mmseg::...'` find the fork, whose distribution has another name, and `'e3va::...'` find e3va."""
    from mmengine.config.utils import MODULE2PACKAGE
    MODULE2PACKAGE['e3va'] = 'e3va'
    if not installed('mmsegmentation'):
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def complete_torchvision():
    """Declare the operators that torchvision names at import, where its own library does not load.

    PyPI's wheel is the CUDA build: beside a CPU torch its `_C.so` is left out, and `import torchvision` fails, with it
    timm, mmpretrain and every Runner. Afterwards only torchvision's own operators raise (mmcv brings nms, roi_align).
    """
    folder = package_folder('torchvision')
    if folder is None or 'torchvision' in sys.modules:
        return
    import torch
    for path in folder.glob('_C*.so'):
        try:
            torch.ops.load_library(path)  # what torchvision does first, and without its other imports
        except OSError:
            library = torch.library.Library('torchvision', 'DEF')
            library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
            library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
            _libraries.append(library)


def leave_out_multimodal(dependency):
    """Beside transformers 5 mmpretrain, and with it mmdet, is imported without its multi-modal models.

    These take names that version 5 left out, and their import fails as a whole; mmpretrain itself can do without.
    """
    from mmengine.utils import digit_version
    if installed('transformers') and digit_version(version('transformers')) >= digit_version('5'):
        dependency.WITH_MULTIMODAL = False


@cache                                                                  # each built trunk asks for it
def patch_mmpretrain():
    """Give SciPy >= 1.14 back `interp2d`, by which mmpretrain resizes position tables when the window differs.

    Called before mmpretrain loads weights. On a grid it is the bivariate spline that SciPy names as its successor.
    """
    if not installed('scipy'):
        return  # mmpretrain does without, until it resizes
    from mmengine.utils import digit_version
    from scipy import interpolate

    def interp2d(x, y, z, kind='linear'):
        degree = {'linear': 1, 'cubic': 3, 'quintic': 5}[kind]
        spline = interpolate.RectBivariateSpline(x, y, z.T, kx=degree, ky=degree)
        return lambda x, y: spline(x, y).T

    if digit_version(version('scipy')) >= digit_version('1.14'):
        interpolate.interp2d = interp2d


def patch_mmcv():
    """Let mmcv's nms and RoIAlign take bfloat16, which its operators lack: detectors then train under bf16 autocast."""
    nms, roi_align = (sys.modules.get(f'mmcv.ops.{name}') for name in ('nms', 'roi_align'))
    if nms and not isinstance(nms.NMSop.forward, partial):
        nms.NMSop.forward = partial(in_float, nms.NMSop.forward)
        roi_align.roi_align = partial(in_float, roi_align.roi_align)


def in_float(function, *args):
    """function(*args), in single precision where tensors are in bfloat16; what it gives has the first one's type."""
    import torch
    out = function(*(arg.float() if isinstance(arg, torch.Tensor) and arg.dtype is torch.bfloat16 else arg
                     for arg in args))
    first = next(arg for arg in args if isinstance(arg, torch.Tensor))
    return out.bfloat16() if first.dtype is torch.bfloat16 and out.is_floating_point() else out
