"""Build a wheel of mmcv and its operators for the torch that is installed; keep it where the next set-up looks.

    python tools/build_mmcv.py --constraint tools/constraints.txt
    pip install --only-binary onedl-mmcv --find-links "$(python tools/build_mmcv.py --where)" onedl-mmcv

Nearly all of the time that one of mmcv's 78 sources takes goes to torch's headers. For a CPU the sources are compiled
joined, some twenty at a time, without a change in them; for CUDA the 59 of its kernels too, four at a time. Where that
fails, or for another device, it is mmcv's own build. Debug information is built by neither. What the user should know
goes to stdout, what pip and the compiler say to stderr. TORCH_CUDA_ARCH_LIST=9.0 builds for cards of that kind alone.
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
# So does this kernel's source with the boxes' ones. The other, StyleGAN 3's, takes minutes.
KERNELS_APART = ('iou3d_cuda.cu', 'filtered_lrelu.cu')
KERNEL_SOURCES = 16                      # joined ones
SECONDS = dict(joined=200, kernels=800, own=800)        # of one core; a GPU's kernels come on top of `own`


def jobs():
    """Compilers at a time."""
    return int(os.environ.get('MAX_JOBS') or len(os.sched_getaffinity(0)))


def for_gpu():
    """Whether mmcv's setup.py builds for more than a CPU."""
    import torch
    asked = [*(f'FORCE_{kind}' for kind in ('CUDA', 'MLU', 'MPS', 'MUSA', 'NPU')), 'MMCV_WITH_DIOPI']
    return any(os.environ.get(name) == '1' for name in asked) or (
        torch.cuda.is_available() or torch.backends.mps.is_available())


def for_cuda():
    """Whether that is a card of CUDA, which mmcv's setup.py takes where no other device is asked for."""
    import torch
    others = any(os.environ.get(f'FORCE_{kind}') == '1' for kind in ('MLU', 'MUSA')) or torch.version.cuda is None
    return for_gpu() and not others and os.environ.get('MMCV_WITH_DIOPI') != '1' and (
        torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1')


def kept_folder(quick=False):
    """Where the wheels for this torch are: in pip's cache, so that `pip cache` lists and removes them, too."""
    import torch
    done = subprocess.run([sys.executable, '-m', 'pip', 'cache', 'dir'], capture_output=True, text=True)
    cache = Path(done.stdout.strip() if done.returncode == 0 else sys.prefix)     # pip was told to keep no cache
    kind = 'cpu' if not for_gpu() else 'gpu-quick' if quick else 'gpu'
    return cache / 'wheels' / 'e3va' / f'torch-{torch.__version__}-{kind}'


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


def csrc(source):
    return source / 'mmcv' / 'ops' / 'csrc' / 'pytorch'


def join(source, count):
    """Let mmcv's setup.py find `count` sources that include the real ones, which move to where it does not look."""
    folder = csrc(source)
    found = sorted([*folder.glob('*.cpp'), *folder.glob('cpu/*.cpp')])
    apart = [path for path in found if path.parent.name == 'cpu' and path.name in APART]
    before = '#include <torch/extension.h>\n'                            # a source's macro max must not meet it
    places = {path: Path('sources') / path.relative_to(folder) for path in [*apart, *found]}
    gather(folder, places, count, 'joined_{}.cpp', before)


def join_kernels(source):
    """The same of CUDA's kernels, which have a folder of their own."""
    folder = csrc(source)
    places = {path: Path('kernels') / path.name                          # a folder beside: they include from above it
              for path in sorted(folder.glob('cuda/*.cu')) if path.name not in KERNELS_APART}
    gather(folder, places, KERNEL_SOURCES, 'cuda/joined_{}.cu')


def gather(folder, places, count, name, before=''):
    """Move sources to their places in the folder, and write `count` that include them in turn."""
    texts = [before] * count
    for i, (path, place) in enumerate(places.items()):
        macros = re.findall(r'^#define (\w+)', path.read_text(), re.M)
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        path.rename(folder / place)
        texts[i % count] += f'#include "{place}"\n' + ''.join(f'#undef {macro}\n' for macro in macros)
    for i, text in enumerate(texts):
        (folder / name.format(i)).write_text(text)


def leave_out_slow(source):
    """Build without the kernel that takes the longest: called on a card it says that it is not implemented there."""
    folder = csrc(source) / 'cuda'
    (folder / 'filtered_lrelu.cu').unlink()
    binding = folder / 'cudabind.cpp'
    binding.write_text(re.sub(r'^REGISTER_DEVICE_IMPL\(filtered_lrelu\w*,[^;]*;', '', binding.read_text(), flags=re.M))


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
    text = (csrc(source) / 'pybind.cpp').read_text()
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


def build_joined(constraint, scratch, quick=False):
    """The wheel, or None where joining fails."""
    source = fetch(constraint, scratch)
    names = defined(source)
    join(source, -(-len(APART) // jobs()) * jobs())                      # as many for each compiler
    if for_cuda():
        if quick:
            leave_out_slow(source)
        join_kernels(source)
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
    parser.add_argument('--quick', action='store_true', help="for CUDA: without StyleGAN 3's filtered_lrelu, which "
                        'takes as long as all others together and which mmdet, mmseg and mmpretrain do not use')
    args = parser.parse_args()
    kept = kept_folder(args.quick)
    if args.where:
        return print(kept)
    wheel = None
    with tempfile.TemporaryDirectory() as scratch:
        joined, own = Path(scratch, 'joined'), Path(scratch, 'own')
        if not for_gpu() or for_cuda():
            tell('compiling joined sources', SECONDS['joined'] + (SECONDS['kernels'] if for_cuda() else 0))
            wheel = build_joined(args.constraint, joined, args.quick)
        if not wheel:
            why = 'joined they do not compile here' if not for_gpu() or for_cuda() else 'kernels for a GPU come on top'
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
