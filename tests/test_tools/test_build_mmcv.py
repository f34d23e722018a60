"""tools/build_mmcv.py on a small stand-in for mmcv's sources, and the library that is installed."""
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = {
    'nms.cpp': 'int nms();', 'pybind.cpp': 'm.def("nms", &nms, "nms");\n  m.def(\n      "iou", &iou);',
    'cpu/bezier_align.cpp': 'struct Same {};', 'cpu/psamask.cpp': '#ifndef max\n#define max(a, b) a\n#endif',
    'cpu/roi_align.cpp': 'struct Same {};', 'cpu/roi_align_rotated.cpp': 'struct Same {};',
    'cpu/rotated_feature_align.cpp': 'struct Same {};'}
KERNELS = {
    'iou3d_cuda.cu': 'struct Point {};', 'filtered_lrelu.cu': 'slow', 'nms_cuda.cu': '#include "../spconv_utils.h"',
    'upfirdn2d_kernel.cu': '#define MIN(a, b) a',
    'cudabind.cpp': 'REGISTER_DEVICE_IMPL(nms_impl, CUDA, nms);\n\n'
                    'REGISTER_DEVICE_IMPL(filtered_lrelu_act_op_impl, CUDA,\n    filtered_lrelu_act_op);\nint rest;'}


@pytest.fixture
def script():
    path = Path(__file__).parents[2] / 'tools' / 'build_mmcv.py'
    spec = importlib.util.spec_from_file_location('build_mmcv', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_sources(root, sources=SOURCES):
    folder = root / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    for name, text in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return root


def test_each_source_is_included_once_and_unchanged(script, tmp_path):
    folder = write_sources(tmp_path) / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    script.join(tmp_path, 4)
    joined = [path.read_text() for path in sorted(folder.glob('*.cpp'))]         # what mmcv's setup.py compiles
    assert len(joined) == 4 and not list(folder.glob('cpu/*.cpp'))
    assert all(text.startswith('#include <torch/extension.h>\n') for text in joined)
    included = [name for text in joined for name in re.findall('#include "sources/(.*)"', text)]
    assert sorted(included) == sorted(SOURCES)
    assert {name: (folder / 'sources' / name).read_text() for name in SOURCES} == SOURCES
    for text in joined:                                                  # helpers of one name never meet
        assert sum(f'cpu/{name}"' in text for name in script.APART) == 1
    assert sum('cpu/psamask.cpp"\n#undef max\n' in text for text in joined) == 1


def test_kernels_are_joined_beside_where_they_were(script, tmp_path):
    """They include from above their folder; two of them stand alone."""
    folder = write_sources(tmp_path, {f'cuda/{name}': text for name, text in KERNELS.items()}) / 'mmcv/ops/csrc/pytorch'
    script.join_kernels(tmp_path)
    assert {path.name for path in folder.glob('cuda/*') if 'joined' not in path.name} == {
        'iou3d_cuda.cu', 'filtered_lrelu.cu', 'cudabind.cpp'}
    joined = [path.read_text() for path in folder.glob('cuda/joined_*.cu')]
    assert sorted(filter(None, joined)) == [
        '#include "kernels/nms_cuda.cu"\n', '#include "kernels/upfirdn2d_kernel.cu"\n#undef MIN\n']
    assert (folder / 'kernels/nms_cuda.cu').read_text() == KERNELS['nms_cuda.cu']


def test_what_takes_minutes_can_be_left_out_with_its_registration(script, tmp_path):
    folder = write_sources(tmp_path, {f'cuda/{name}': text for name, text in KERNELS.items()}) / 'mmcv/ops/csrc/pytorch'
    script.leave_out_slow(tmp_path)
    assert not (folder / 'cuda/filtered_lrelu.cu').exists()
    assert (folder / 'cuda/cudabind.cpp').read_text().split() == [
        'REGISTER_DEVICE_IMPL(nms_impl,', 'CUDA,', 'nms);', 'int', 'rest;']


def test_each_compiler_gets_as_many(script, tmp_path, monkeypatch):
    counts = []
    monkeypatch.setattr(script, 'fetch', lambda constraint, scratch: write_sources(tmp_path / str(len(counts))))
    monkeypatch.setattr(script, 'join', lambda source, count: counts.append(count))
    monkeypatch.setattr(script, 'build', lambda source, out: None)
    monkeypatch.setattr(script, 'exported', lambda wheel, scratch: set())
    for jobs in ('1', '2', '3', '4', '7'):
        monkeypatch.setenv('MAX_JOBS', jobs)
        script.build_joined('', tmp_path)
    assert counts == [4, 4, 6, 4, 7]


def run(script, monkeypatch, tmp_path, gpu=False, joins=True, names=('nms', 'iou'), cuda=False, options=()):
    """What main() builds, on three cores; joined sources compile where `joins`, and export `names`."""
    built = []

    def build(source, out):
        joined = bool(list(source.rglob('joined_0.cpp')))
        built.append('joined' if joined else 'own')
        if joined and not joins:
            raise subprocess.CalledProcessError(1, ['pip'])
        out.mkdir(parents=True, exist_ok=True)
        (out / 'onedl_mmcv-1-cp311-cp311-linux_x86_64.whl').write_text(built[-1])
        return out / 'onedl_mmcv-1-cp311-cp311-linux_x86_64.whl'

    sources = {**SOURCES, **{f'cuda/{name}': text for name, text in KERNELS.items()}}
    monkeypatch.setattr(script, 'fetch', lambda constraint, scratch: write_sources(scratch, sources))
    monkeypatch.setattr(script, 'build', build)
    monkeypatch.setattr(script, 'exported', lambda wheel, scratch: set(names))
    monkeypatch.setattr(script, 'for_gpu', lambda: gpu)
    monkeypatch.setattr(script, 'for_cuda', lambda: cuda)
    monkeypatch.setattr(script, 'kept_folder', lambda quick: tmp_path / 'kept')
    monkeypatch.setattr(sys, 'argv', ['build_mmcv.py', '--constraint', 'c.txt', *options])
    monkeypatch.setenv('MAX_JOBS', '3')
    script.main()
    kept, = (tmp_path / 'kept').iterdir()
    assert kept.read_text() == built[-1] and kept.suffix == '.whl'
    return built


def test_the_time_is_told_from_the_cores(script, monkeypatch, tmp_path, capsys):
    assert run(script, monkeypatch, tmp_path) == ['joined']
    assert capsys.readouterr().out == '      compiling joined sources: about 1 min on 3 cores\n'


@pytest.mark.parametrize('steering', [dict(joins=False), dict(names=('nms', ))])
def test_where_joining_fails_mmcvs_own_build_follows_and_that_is_said(
        script, monkeypatch, tmp_path, capsys, steering):
    assert run(script, monkeypatch, tmp_path, **steering) == ['joined', 'own']
    assert capsys.readouterr().out.splitlines()[1:] == [
        "      compiling mmcv's sources one by one (joined they do not compile here): about 4 min on 3 cores"]


def test_for_a_gpu_it_is_mmcvs_own_build_and_that_is_said(script, monkeypatch, tmp_path, capsys):
    assert run(script, monkeypatch, tmp_path, gpu=True) == ['own']
    assert 'one by one (kernels for a GPU come on top)' in capsys.readouterr().out


@pytest.mark.parametrize('options', [[], ['--quick']])
def test_for_cuda_the_kernels_are_joined_too(script, monkeypatch, tmp_path, capsys, options):
    left_out = []
    monkeypatch.setattr(script, 'leave_out_slow', left_out.append)
    assert run(script, monkeypatch, tmp_path, gpu=True, cuda=True, options=options) == ['joined']
    assert capsys.readouterr().out == '      compiling joined sources: about 6 min on 3 cores\n'
    assert len(left_out) == len(options)


def test_where_the_kernels_do_not_compile_joined_mmcvs_own_build_follows(script, monkeypatch, tmp_path, capsys):
    assert run(script, monkeypatch, tmp_path, gpu=True, cuda=True, joins=False) == ['joined', 'own']
    assert '(joined they do not compile here)' in capsys.readouterr().out


def test_a_gpu_is_found_or_asked_for(script, monkeypatch):
    import torch
    for name in ('FORCE_CUDA', 'FORCE_MLU', 'FORCE_MPS', 'FORCE_MUSA', 'FORCE_NPU', 'MMCV_WITH_DIOPI'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('FORCE_COLOR', '1')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    assert not script.for_gpu()
    monkeypatch.setenv('FORCE_CUDA', '1')
    assert script.for_gpu()
    monkeypatch.delenv('FORCE_CUDA')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert script.for_gpu()


def test_a_card_of_cuda_is_told_from_other_devices(script, monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    for version, other, found in (('13.0', '', True), ('13.0', 'FORCE_MLU', False), (None, '', False)):
        monkeypatch.setattr(torch.version, 'cuda', version)
        with monkeypatch.context() as asked:
            if other:
                asked.setenv(other, '1')
            assert script.for_cuda() == found


@pytest.mark.parametrize('given', [None, '-O2 -march=native'])
def test_debug_information_is_never_built(script, monkeypatch, tmp_path, given):
    calls = []

    def pip(*arguments, **environment):
        calls.append(environment)
        (tmp_path / 'a.whl').touch()

    monkeypatch.setattr(script, 'pip', pip)
    for name in ('CFLAGS', 'CXXFLAGS'):
        monkeypatch.setenv(name, given) if given else monkeypatch.delenv(name, raising=False)
    script.build(tmp_path, tmp_path)
    for name in ('CFLAGS', 'CXXFLAGS'):
        assert calls[0][name].endswith(' -g0') and (given or '-O3') in calls[0][name]


def test_a_wheel_is_kept_apart_for_each_torch_and_kind_of_build(script, monkeypatch, tmp_path):
    import torch
    monkeypatch.setenv('PIP_CACHE_DIR', str(tmp_path))
    places = set()
    for version, gpu, quick in (('2.13.0+cpu', False, False), ('2.13.0', False, True), ('2.13.0', True, False),
                                ('2.13.0', True, True)):
        monkeypatch.setattr(torch, '__version__', version)
        monkeypatch.setattr(script, 'for_gpu', lambda: gpu)
        places.add(script.kept_folder(quick))
    assert len(places) == 4 and all(place.is_relative_to(tmp_path / 'wheels') for place in places)


def test_the_installed_library_exports_what_mmcvs_binding_names():
    import mmcv
    from mmcv import _ext
    binding, = Path(mmcv.__file__).parent.rglob('pytorch/**/pybind.cpp')
    named = set(re.findall(r'm\.def\(\s*"(\w+)"', binding.read_text()))
    assert named and {name for name in dir(_ext) if not name.startswith('_')} == named
