"""setup.py: what a wheel, a source archive and an editable install hold, and that they pull nothing in."""
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLONE_ONLY = {'tools/setup_env.sh', 'tools/build_mmcv.py', 'tools/constraints.txt', 'tools/quickstart.sh',
              'tools/run_tests.sh', 'tools/gpu_check.sh', 'tools/offline_wheels.sh'}
CLONE_ONLY |= {path.relative_to(ROOT).as_posix() for path in (ROOT / 'tools' / 'gpu_check').glob('*.*')}
PIP = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
OFFLINE = ['--no-index', '--no-build-isolation', '--no-cache-dir']


def run(*command, cwd, **environment):
    done = subprocess.run(command, cwd=cwd, env=dict(os.environ, **environment), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_project(folder):
    """The files of the project that setup.py reads, without caches and links that an install left."""
    for name in ('setup.py', 'model-index.yml', 'LICENSE'):
        shutil.copy(ROOT / name, folder)
    for name in ('e3va', 'configs', 'tools'):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    return folder


def files_below(folder, *names):
    return {path.relative_to(folder).as_posix() for name in names for path in (folder / name).rglob('*')
            if path.is_file() and '__pycache__' not in path.parts}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    clone = copy_project(tmp_path_factory.mktemp('clone'))
    # A stale build folder must not leak old files into the wheel's .mim.
    stale = clone / 'build' / 'lib' / 'e3va' / '.mim' / 'configs' / 'renamed.py'
    stale.parent.mkdir(parents=True)
    stale.touch()
    run(*PIP, 'wheel', *OFFLINE, '--no-deps', '--wheel-dir', clone / 'out', '.', cwd=clone)
    return next((clone / 'out').glob('e3va-*.whl'))


def test_wheel_holds_the_package_the_configs_and_the_tools(wheel):
    everything = zipfile.ZipFile(wheel).namelist()
    names = {name for name in everything if '.dist-info/' not in name}
    package = {name for name in files_below(ROOT, 'e3va') if name.endswith('.py') and '/.mim/' not in name}
    shipped = files_below(ROOT, 'configs', 'tools') - CLONE_ONLY | {'model-index.yml'}
    assert names == package | {f'e3va/.mim/{name}' for name in shipped}
    assert {name.partition('.dist-info/.mim/')[2] for name in everything} - {''} == shipped


def test_hard_requirements_name_no_distribution_that_has_a_fork(wheel):
    archive = zipfile.ZipFile(wheel)
    text = archive.read(next(name for name in archive.namelist() if name.endswith('/METADATA'))).decode()
    requirements = Parser().parsestr(text).get_all('Requires-Dist')
    assert sorted(line for line in requirements if 'extra ==' not in line) == ['rich', 'safetensors']


def test_install_from_the_clone_adds_e3va_alone(tmp_path):
    clone = copy_project(tmp_path)
    report = run(*PIP, 'install', *OFFLINE, '--dry-run', '--quiet', '--report', '-', '.', cwd=clone)
    assert [item['metadata']['name'] for item in json.loads(report)['install']] == ['e3va']


def test_source_archive_builds_the_same_wheel(wheel, tmp_path):
    clone = copy_project(tmp_path)
    run(sys.executable, 'setup.py', '--quiet', 'sdist', cwd=clone)
    with tarfile.open(next((clone / 'dist').glob('e3va-*.tar.gz'))) as archive:
        archive.extractall(clone / 'unpacked', filter='data')
    source = next((clone / 'unpacked').iterdir())
    run(*PIP, 'wheel', *OFFLINE, '--no-deps', '--wheel-dir', clone / 'out', '.', cwd=source)
    again = next((clone / 'out').glob('e3va-*.whl'))
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_editable_install_links_configs_and_tools(tmp_path):
    clone = copy_project(tmp_path)
    run(sys.executable, 'setup.py', '--quiet', 'editable_wheel', '--dist-dir', clone / 'out', cwd=clone)
    mim = clone / 'e3va' / '.mim'
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (mim / name).is_symlink() and (mim / name).samefile(clone / name)
    # An installed editable must survive a build of a wheel from the same clone.
    run(*PIP, 'wheel', *OFFLINE, '--no-deps', '--wheel-dir', clone / 'out', '.', cwd=clone)
    assert (mim / 'configs').samefile(clone / 'configs')


def test_installed_wheel_serves_configs_and_tools_from_anywhere(wheel, tmp_path):
    site = tmp_path / 'site'
    run(*PIP, 'install', *OFFLINE, '--no-deps', '--quiet', '--target', site, wheel, cwd=tmp_path)
    code = ('import e3va; from mmengine.config import Config; print(e3va.__file__);'
            'print(Config.fromfile("child.py").method.type)')
    (tmp_path / 'child.py').write_text("_base_ = 'e3va::methods/e3va.py'\n")
    where, method = run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(site)).splitlines()
    assert Path(where) == site / 'e3va' / '__init__.py' and method == 'E3VA'
    command = [sys.executable, site / 'bin' / 'e3va']                   # whose own first line may name another Python
    assert '--method' in run(*command, 'train', '--help', cwd=tmp_path, PYTHONPATH=str(site))
    assert 'e3va COMMAND' in run(*command, cwd=tmp_path, PYTHONPATH=str(site))


def test_no_two_configs_share_a_file_name():
    """`mim train e3va NAME.py` looks a config up by its bare name and refuses two."""
    names = [path.name for path in (ROOT / 'configs').rglob('*.py')]
    assert sorted({name for name in names if names.count(name) > 1}) == []
