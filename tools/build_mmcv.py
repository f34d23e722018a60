"""Build a wheel of mmcv and its operators for the torch that is installed; keep it where the next set-up looks.

    python tools/build_mmcv.py --constraint tools/constraints.txt
    pip install --only-binary onedl-mmcv --find-links "$(python tools/build_mmcv.py --where)" onedl-mmcv

Nearly all of the time that one of mmcv's 78 sources takes goes to torch's headers. For a CPU the sources are compiled
joined, some twenty at a time, without a change in them. Where that fails, or for a GPU, it is mmcv's own build. Debug
information is built by neither. What the user should know goes to stdout, what pip and the compiler say to stderr.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

NAME = 'onedl-mmcv'
# These define helpers of the same names: no two of them into one joined source.
APART = ('bezier_align.cpp', 'roi_align.cpp', 'roi_align_rotated.cpp', 'rotated_feature_align.cpp')
SECONDS = dict(joined=200, own=800)      # of one core; a GPU's kernels, which were not measured, come on top of it


def jobs():
    """Compilers at a time."""
    return int(os.environ.get('MAX_JOBS') or len(os.sched_getaffinity(0)))


def for_gpu():
    """Whether mmcv's setup.py builds for more than a CPU."""
    import torch
    asked = [*(f'FORCE_{kind}' for kind in ('CUDA', 'MLU', 'MPS', 'MUSA', 'NPU')), 'MMCV_WITH_DIOPI']
    return any(os.environ.get(name) == '1' for name in asked) or (
        torch.cuda.is_available() or torch.backends.mps.is_available())


def kept_folder():
    """Where the wheels for this torch are: in pip's cache, so that `pip cache` lists and removes them, too."""
    import torch
    done = subprocess.run([sys.executable, '-m', 'pip', 'cache', 'dir'], capture_output=True, text=True)
    cache = Path(done.stdout.strip() if done.returncode == 0 else sys.prefix)     # pip was told to keep no cache
    return cache / 'wheels' / 'e3va' / f'torch-{torch.__version__}-{"gpu" if for_gpu() else "cpu"}'


def pip(*arguments, **environment):
    subprocess.run([sys.executable, '-m', 'pip', *map(str, arguments)], stdout=sys.stderr, check=True,
                   env=dict(os.environ, **environment))


def fetch(constraint, scratch):
    """The unpacked source of mmcv."""
    pip('download', '--no-deps', '--no-build-isolation', '--no-binary', NAME, '--constraint', constraint,
        '--dest', scratch, NAME)
    archive, = scratch.glob('*.tar.gz')
    with tarfile.open(archive) as content:
        content.extractall(scratch, filter='data')
    return scratch / archive.name.removesuffix('.tar.gz')


def join(source, count):
    """Let mmcv's setup.py find `count` sources that include the real ones, which move to where it does not look."""
    folder = source / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    found = sorted([*folder.glob('*.cpp'), *folder.glob('cpu/*.cpp')])
    apart = [path for path in found if path.parent.name == 'cpu' and path.name in APART]
    texts = ['#include <torch/extension.h>\n'] * count                   # before a source's macro max could meet it
    for i, path in enumerate(apart + [path for path in found if path not in apart]):
        place = Path('sources') / path.relative_to(folder)
        macros = re.findall(r'^#define (\w+)', path.read_text(), re.M)
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        path.rename(folder / place)
        texts[i % count] += f'#include "{place}"\n' + ''.join(f'#undef {macro}\n' for macro in macros)
    for i, text in enumerate(texts):
        (folder / f'joined_{i}.cpp').write_text(text)


def build(source, out):
    """The wheel of `source`, in `out`."""
    # Either replaces Python's own flags. torch hands CFLAGS on where there is ninja, setuptools CXXFLAGS where not.
    flags = {name: f'{os.environ.get(name, sysconfig.get_config_var("CFLAGS"))} -g0' for name in ('CFLAGS', 'CXXFLAGS')}
    pip('wheel', '--verbose', '--no-deps', '--no-build-isolation', '--no-cache-dir', '--wheel-dir', out, source,
        MAX_JOBS=str(jobs()), **flags)
    wheel, = out.glob('*.whl')
    return wheel


def defined(source):
    """Names of the functions that mmcv's own binding exports."""
    text = (source / 'mmcv' / 'ops' / 'csrc' / 'pytorch' / 'pybind.cpp').read_text()
    return set(re.findall(r'm\.def\(\s*"(\w+)"', text))


def exported(wheel, scratch):
    """Names of the functions in the wheel's library."""
    with zipfile.ZipFile(wheel) as content:
        library, = (name for name in content.namelist() if name.startswith('mmcv/_ext'))
        content.extract(library, scratch)
    code = 'import torch, _ext; print(*(name for name in dir(_ext) if name[0] != "_"))'
    done = subprocess.run([sys.executable, '-c', code], cwd=scratch / 'mmcv', capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    return set(done.stdout.split())


def build_joined(constraint, scratch):
    """The wheel, or None where joining fails."""
    source = fetch(constraint, scratch)
    names = defined(source)
    join(source, -(-len(APART) // jobs()) * jobs())                      # as many for each compiler
    try:
        wheel = build(source, scratch / 'out')
    except subprocess.CalledProcessError:
        return None
    return wheel if exported(wheel, scratch / 'library') == names else None


def tell(what, seconds):
    print(f'      {what}: about {max(1, round(seconds / jobs() / 60))} min on {jobs()} cores', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--constraint', metavar='FILE', help='which version')
    parser.add_argument('--where', action='store_true', help='print the folder of the wheel and stop')
    args = parser.parse_args()
    kept = kept_folder()
    if args.where:
        return print(kept)
    wheel = None
    with tempfile.TemporaryDirectory() as scratch:
        joined, own = Path(scratch, 'joined'), Path(scratch, 'own')
        if not for_gpu():
            tell('compiling joined sources', SECONDS['joined'])
            wheel = build_joined(args.constraint, joined)
        if not wheel:
            why = 'kernels for a GPU come on top' if for_gpu() else 'joined they do not compile here'
            tell(f"compiling mmcv's sources one by one ({why})", SECONDS['own'])
            wheel = build(fetch(args.constraint, own), own / 'out')
        kept.mkdir(parents=True, exist_ok=True)
        part = kept / f'{wheel.name}.{os.getpid()}.part'                 # two set-ups may come here at once
        shutil.copyfile(wheel, part)
        part.replace(kept / wheel.name)


if __name__ == '__main__':
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f'build_mmcv: failed: {" ".join(map(str, error.cmd))}')
