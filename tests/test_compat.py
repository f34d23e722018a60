"""The helps for the stack: torchvision, base prefixes, SciPy, and the combinations that are named at import."""
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config

from e3va import compat

ROOT = Path(__file__).parents[1]
TESTED = {'torch': '2.13.0+cpu', 'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1'}
# What upstream's mmdet 3.3.0 and mmseg 1.2.2 write in their __init__.py.
UPSTREAM = dict(mmdet="mmcv_minimum_version = '2.0.0rc4'\nmmcv_maximum_version = '2.2.0'\n",
                mmseg="MMCV_MIN = '2.0.0rc4'\nMMCV_MAX = '2.2.0'\n")


def run(code, packages=''):
    """What code prints in a process of its own that finds this e3va, and before all else what lies in `packages`."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(packages), str(ROOT)]))
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light_and_starts_no_process():
    code = '''
import sys
sys.addaudithook(lambda event, _: event in ('subprocess.Popen', 'os.system', 'os.exec') and print(event))
import e3va
print(*{'mmdet', 'mmseg', 'mmpretrain', 'torchvision', 'timm', 'pip'} & set(sys.modules))
'''
    assert run(code).split() == []


@pytest.mark.parametrize('before', ['', 'import mmengine.logging; '])
def test_the_forks_print_nothing_at_import(before):
    """They tell at DEBUG, without a logger, that a package is missing, which went into tables on stdout."""
    assert run(f"{before}import e3va, mmdet.datasets, mmseg.datasets, mmpretrain.datasets; "
               "from mmengine.logging import print_log; print_log('heard')") == 'heard\n'


def test_torchvision_whose_library_does_not_load_can_be_imported(tmp_path):
    """A stand-in that registers at import what torchvision 0.28 registers; torch raises for unknown operators."""
    package = tmp_path / 'torchvision'
    package.mkdir()
    (package / '_C.so').write_bytes(b'not a library')
    (package / '__init__.py').write_text(
        'import torch\n'
        "torch.library.register_fake('torchvision::nms')(lambda boxes, scores, threshold: scores)\n"
        "torch.library.register_fake('torchvision::qnms')(lambda boxes, scores, threshold: scores)\n")
    assert run('import e3va, torchvision; print(torchvision.__file__)', tmp_path).strip() == f'{package}/__init__.py'


def test_the_libraries_and_the_environment_report_import():
    code = ('import e3va, timm, mmdet.apis, mmseg.apis, mmpretrain.apis;'
            'from mmengine.utils.dl_utils import collect_env; print(collect_env()["TorchVision"])')
    assert run(code).split()[-1].startswith(version('torchvision'))


def test_a_torchvision_that_loads_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / '_C.so').touch()
    monkeypatch.delitem(sys.modules, 'torchvision', raising=False)
    monkeypatch.setattr(compat, 'package_folder', lambda module: tmp_path)
    loaded = []
    monkeypatch.setattr(torch.ops, 'load_library', loaded.append)
    monkeypatch.setattr(torch.library, 'Library', None)  # would raise if it was called
    compat.complete_torchvision()
    assert loaded == [tmp_path / '_C.so']


@pytest.mark.parametrize('prefix', ['mmdet', 'mmseg', 'mmpretrain'])
def test_base_prefixes_find_the_installed_distribution(prefix, tmp_path):
    name, trunk = dict(mmdet=('_base_/models/retinanet_r50_fpn.py', 'ResNet'),
                       mmseg=('_base_/models/upernet_swin.py', 'SwinTransformer'),
                       mmpretrain=('_base_/models/swin_transformer/base_224.py', 'SwinTransformer'))[prefix]
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = '{prefix}::{name}'\n")
    assert Config.fromfile(child).model.backbone.type == trunk


def test_interp2d_reproduces_cubics_on_an_uneven_grid():
    compat.patch_mmpretrain()
    from scipy import interpolate
    x, y = np.array([-7.1, -4, -2, -1, 0, 1, 2.5, 5, 8]), np.array([-5, -3, -1, 0, 1.5, 3, 6])

    def cubic(x, y):
        return (0.1 * x**3 - x + 2) * (0.2 * y**3 + y**2 - 3)

    values = interpolate.interp2d(x, y, cubic(x[None], y[:, None]), kind='cubic')
    at_x, at_y = np.linspace(-7, 8, 16), np.linspace(-5, 6, 12)
    np.testing.assert_allclose(values(at_x, at_y), cubic(at_x[None], at_y[:, None]), rtol=1e-9, atol=1e-9)


def test_mmpretrain_loads_a_swin_of_another_window():
    from mmpretrain.models import SwinTransformer
    compat.patch_mmpretrain()
    arch = dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2])
    small, large = (SwinTransformer(arch, img_size=8 * window, window_size=window, out_indices=(1,), pad_small_map=True)
                    for window in (4, 7))
    name = 'stages.1.blocks.0.attn.w_msa.relative_position_bias_table'
    torch.nn.init.normal_(small.get_parameter(name))
    assert not large.load_state_dict(small.state_dict(), strict=False).unexpected_keys
    before, after = small.get_parameter(name), large.get_parameter(name)
    assert before.shape == (49, 2) and after.shape == (169, 2)
    # Offset (0, 0) is a grid point of both windows, and so is one pixel to each side.
    offsets = [(0, 0), (0, 1), (1, 0), (-1, 0), (1, -1)]
    near, far = ([(half + dy) * (2 * half + 1) + half + dx for dy, dx in offsets] for half in (3, 6))
    torch.testing.assert_close(after[far], before[near], rtol=1e-4, atol=1e-5)


def problems(monkeypatch, tmp_path, versions, mmcv_files=('_ext.cpython-311-x86_64-linux-gnu.so',), libraries=()):
    """The lines that compat yields on a machine with these distributions."""
    folders = {name: tmp_path / name for name in ('mmcv', *libraries)}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / '__init__.py').write_text(UPSTREAM.get(name, ''))
    for name in mmcv_files:
        (folders['mmcv'] / name).touch()
    monkeypatch.setattr(compat, 'installed', versions.get)
    monkeypatch.setattr(compat, 'package_folder', folders.get)
    return list(compat.problems())


def test_the_tested_stack_and_upstreams_own_have_no_problem(monkeypatch, tmp_path):
    assert list(compat.problems()) == []
    upstream = dict(torch='2.1.2+cu118', mmengine='0.10.4', mmcv='2.1.0', mmdet='3.3.0', mmsegmentation='1.2.2')
    assert problems(monkeypatch, tmp_path, upstream, libraries=('mmdet', 'mmseg')) == []


@pytest.mark.parametrize('changes, options, line', [
    (dict(mmcv='2.1.0'), {}, 'mmcv and onedl-mmcv overwrite each other'),
    ({'mmengine': '0.10.7', 'onedl-mmengine': None}, {}, 'mmengine 0.10.7 cannot load checkpoints under torch 2.13.0'),
    (dict(torch='2.0.1'), {}, 'torch 2.0.1 is too old'),
    ({}, dict(mmcv_files=()), 'mmcv 2.3.6 has no compiled operators'),
    ({}, dict(libraries=['mmdet']), 'mmdet takes mmcv >= 2.0.0rc4, < 2.2.0, and mmcv 2.3.6 is installed'),
    ({}, dict(libraries=['mmseg']), 'mmseg takes mmcv >= 2.0.0rc4, < 2.2.0, and mmcv 2.3.6 is installed'),
])
def test_an_unsupported_combination_is_named_in_one_line(monkeypatch, tmp_path, caplog, changes, options, line):
    found = problems(monkeypatch, tmp_path, {**TESTED, **changes}, **options)
    assert len(found) == 1 and found[0].startswith(line) and '\n' not in found[0]
    compat.install()
    assert [record.getMessage() for record in caplog.records] == [f'e3va: {found[0]}']


def test_a_missing_stack_is_named(monkeypatch):
    monkeypatch.setattr(compat, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='e3va needs torch and mmengine: install torch first'):
        compat.install()


def test_detectors_operators_take_bfloat16():
    """nms keeps the boxes that it keeps in fp32; RoIAlign gives bf16, within its rounding, and a gradient."""
    from mmcv.ops import RoIAlign, nms
    compat.patch_mmcv()
    compat.patch_mmcv()                                                 # twice does no harm
    torch.manual_seed(0)
    corner = 20 * torch.rand(50, 2)
    boxes, scores = torch.cat([corner, corner + 15], dim=1), torch.rand(50).bfloat16()
    assert torch.equal(nms(boxes, scores, 0.5)[1], nms(boxes, scores.float(), 0.5)[1])
    image, rois = torch.randn(1, 3, 16, 16), torch.tensor([[0, 1., 2, 9, 12]])
    roi_align = RoIAlign(7)
    want = roi_align(image, rois)
    half = image.bfloat16().requires_grad_()
    got = roi_align(half, rois.bfloat16())
    assert got.dtype == torch.bfloat16 and (got - want).abs().max() < 0.02
    got.sum().backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.any()
    assert roi_align(image.double(), rois.double()).dtype == torch.double


def test_a_text_is_formatted_once():
    """mmengine asks for a run's config again and again."""
    calls = []

    def real(text, **options):
        calls.append((text, options))
        return text.upper(), True

    yapf_api = SimpleNamespace(FormatCode=real)
    compat.format_once(yapf_api)
    style = dict(based_on_style='pep8')
    assert [yapf_api.FormatCode(text, style_config=dict(style)) for text in 'aab'] == [
        ('A', True), ('A', True), ('B', True)]
    assert yapf_api.FormatCode('b', style_config=dict(style, indent=2)) == ('B', True)
    assert calls == [('a', dict(style_config=style)), ('b', dict(style_config=style)),
                     ('b', dict(style_config=dict(style, indent=2)))]


def test_metafiles_are_read_once(tmp_path, monkeypatch):
    """For the second `mmdet::` of a process none is parsed."""
    import yaml
    from mmengine.config import Config
    for name in 'ab':
        (tmp_path / f'{name}.py').write_text("_base_ = 'mmdet::_base_/default_runtime.py'")
    first = Config.fromfile(tmp_path / 'a.py')
    monkeypatch.setattr(yaml, 'load', lambda *_, **__: pytest.fail('a metafile is read again'))
    assert Config.fromfile(tmp_path / 'b.py').to_dict() == first.to_dict()
