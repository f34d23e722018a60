"""`e3va doctor`: versions, devices, what works here and what does not, and what to do about it."""
import contextlib
import io
import os
import platform
import shutil
import sys
import warnings
from pathlib import Path

import e3va
from e3va import compat

# Distributions that tell their version: (name to show, what has it); the first that is installed counts.
PACKAGES = dict(torch=('torch', ), torchvision=('torchvision', ), **compat.DISTRIBUTIONS, timm=('timm', ),
                numpy=('numpy', ), safetensors=('safetensors', ), opencv=('opencv-python', 'opencv-python-headless'),
                segment_anything=('segment-anything', ), plotly=('plotly', ))
INSTALL = "bash tools/setup_env.sh in a clone of e3va sets up all of it, or: pip install '.[onedl]'"


def main(argv=()):
    """Print it all; 1 where e3va itself does not work, 2 for a wrong argument, else 0."""
    if list(argv):
        told = 'usage: e3va doctor\n\n' + __doc__
        print(told, file=sys.stdout if argv[0] in ('-h', '--help') else sys.stderr)
        return 0 if argv[0] in ('-h', '--help') else 2
    head('Versions')
    line('e3va', f'{e3va.__version__} in {Path(e3va.__file__).parent}')
    line('Python', f'{platform.python_version()} in {sys.prefix}')
    line('system', platform.platform())
    for name, distributions in PACKAGES.items():
        found = [f'{each} {compat.installed(each)}' for each in distributions if compat.installed(each)]
        line(name, found[0] if found else 'not installed')
    head('Devices')
    for name, told in devices():
        line(name, told)
    head('What works')
    results = [attempt(*check) for check in CHECKS]
    problems = list(compat.problems())
    if problems:
        head('Known problems')
        for problem in problems:
            print(f'  {problem}')
    if all(results) and not problems:
        print('\nAll of it works.')
    return 0 if results[0] else 1


def head(words):
    print(f'\n{words}' if words != 'Versions' else words)


def line(name, told):
    print(f'  {name:18} {told}')


def devices():
    """(name, what is told of it)."""
    import torch
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    yield 'CPU', f'{cores} cores, {torch.get_num_threads()} threads{memory()}'
    for i in range(torch.cuda.device_count()):
        free, total = (value / 2 ** 30 for value in torch.cuda.mem_get_info(i))
        bf16 = '' if torch.cuda.is_bf16_supported() else ', no bfloat16'
        yield f'GPU {i}', f'{torch.cuda.get_device_name(i)}, {free:.1f} of {total:.1f} GiB free{bf16}'
    if not torch.cuda.device_count():
        built = f'built for CUDA {torch.version.cuda}' if torch.version.cuda else 'a build for the CPU'
        card = shutil.which('nvidia-smi')
        yield 'GPU', f'none: torch is {built}' + (
            '; nvidia-smi is there, so install a torch for CUDA: https://pytorch.org/get-started' if card and
            not torch.version.cuda else '')
    free = shutil.disk_usage('.').free / 2 ** 30
    yield 'disk', f'{free:.1f} GiB free in {Path.cwd()}'


def memory():
    try:
        return f', {os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2 ** 30:.1f} GiB of memory'
    except (ValueError, OSError, AttributeError):                       # not on every system
        return ''


# ---- the checks: each returns what to tell, or raises

def attempt(name, check, remedy):
    """Print how a check went; whether it went well."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():     # the libraries' own words
            warnings.simplefilter('ignore')
            told = check()
        line(name, f'works{told or ""}')
        return True
    except Exception as error:                                          # whatever a broken library raises
        said = str(error).strip() or type(error).__name__
        line(name, f'does not work: {said.splitlines()[0][:200]}')
        line('', f'-> {remedy}')
        return False


def step():
    """LoRA inside a small attention block, a step of training, a delta: on every device."""
    import torch
    from torch import nn
    places = ['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))]
    for place in places:
        model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
        e3va.tune(model, dict(type='LoRA', rank=2, targets=['0']))
        model.to(place)
        model(torch.randn(4, 8, device=place)).square().sum().backward()
        assert any('.up' in name for name in e3va.delta(model)), 'LoRA has left nothing in the delta'
    return f' on {", ".join(places)}'


def configs():
    from .config import configs_folder
    folder = configs_folder('e3va')
    return f': {len(list((folder / "methods").glob("*.py")))} methods in {folder}'


def operators():
    from mmcv.ops import nms  # noqa: F401 its import loads the compiled file


def detection():
    import mmdet.apis  # noqa: F401


def segmentation():
    import mmseg.apis  # noqa: F401


def classification():
    import mmpretrain.apis  # noqa: F401


def trunks():
    import timm
    timm.create_model('test_vit', num_classes=0)


def report():
    import plotly  # noqa: F401


CHECKS = (
    ('tuning', step, 'torch or e3va is damaged: install both anew'),
    ('configs', configs, 'install e3va anew: pip install --force-reinstall --no-deps the wheel'),
    ('timm', trunks, 'pip install timm, for its backbones'),
    ("mmcv's operators", operators, f'they are compiled for one torch: {INSTALL}'),
    ('detection', detection, f'mmdet: {INSTALL}'),
    ('segmentation', segmentation, f'mmseg: {INSTALL}'),
    ('classification', classification, f'mmpretrain: {INSTALL}'),
    ('report', report, 'pip install plotly, for e3va report'))
