"""Install e3va alone: neither OpenMMLab's own packages nor the `onedl-*` forks are forced over what is there."""
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop
from setuptools.command.sdist import sdist

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    from wheel.bdist_wheel import bdist_wheel

SHIPPED = ('configs', 'tools', 'model-index.yml')
# These set up or check a clone of the project and mean nothing inside an installed package.
CLONE_ONLY = ('setup_env.sh', 'build_mmcv.py', 'constraints.txt', 'quickstart.sh', 'run_tests.sh', 'gpu_check.sh',
              'gpu_check', 'offline_wheels.sh')


def copy_shipped(folder, leave_out=()):
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHIPPED:
        if Path(name).is_dir():
            shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns('__pycache__', *leave_out))
        else:
            shutil.copy(name, folder)


def link_shipped():
    """An editable install links configs and tools, so that an edit shows at once."""
    mim = Path('e3va', '.mim')
    shutil.rmtree(mim, ignore_errors=True)
    mim.mkdir()
    for name in SHIPPED:
        (mim / name).symlink_to(Path('..', '..', name))


class BuildWithMim(build_py):
    """Put configs and tools into `e3va/.mim`, where upstream's mim and mmengine (`e3va::`) look for them."""

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            link_shipped()
        else:
            mim = Path(self.build_lib, 'e3va', '.mim')
            shutil.rmtree(mim, ignore_errors=True)  # an earlier build may have left files that are gone
            copy_shipped(mim, CLONE_ONLY)


class WheelWithMim(bdist_wheel):
    """A second copy for onedl-mim 0.5.1: it looks beside the first file of RECORD, which is in `e3va-*.dist-info`."""

    def egg2dist(self, egginfo_path, distinfo_path):
        super().egg2dist(egginfo_path, distinfo_path)
        if 'bdist_wheel' in self.distribution.commands:  # else it is an editable install, or metadata alone
            copy_shipped(Path(distinfo_path, '.mim'), CLONE_ONLY)


class DevelopWithMim(develop):
    """The editable install of setuptools < 80, which does not run build_py."""

    def run(self):
        super().run()
        link_shipped()


class SourceWithMim(sdist):
    """Add configs and tools to the source archive, so that a wheel can be built from it as from a clone."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        copy_shipped(Path(base_dir))


setup(
    name='e3va',
    version=re.search(r"^__version__ = '(.+)'", Path('e3va/__init__.py').read_text(), re.M)[1],
    description='Adapt large frozen vision trunks inside OpenMMLab with few trained parameters, little memory and time',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['e3va', 'e3va.*']),
    entry_points=dict(console_scripts=['e3va = e3va.command.main:main']),
    # Only what both families of OpenMMLab packages leave open, and without bounds: nothing installed is replaced.
    install_requires=['rich', 'safetensors'],
    extras_require={
        # The tested stack. torch comes first (onedl-mmcv compiles against it): see tools/setup_env.sh.
        'onedl': [
            'onedl-mmengine>=0.10.12,<0.11',
            'onedl-mmcv>=2.3.6,<2.4',
            'onedl-mmdetection>=3.5.1,<3.6',
            'onedl-mmsegmentation>=1.4.2,<1.5',
            'onedl-mmpretrain>=1.3.6,<1.4',
            'timm>=1.0.31,<1.1',
        ],
        'sam': ['segment-anything>=1.0,<2'],                 # the prompt encoder and mask decoder of e3va.SAMSegmentor
        'report': ['plotly>=7,<8'],                          # tools/analysis_tools/report.py
        'docs': ['mkdocs-material>=9,<10', 'mkdocstrings-python>=2,<3', 'nbclient>=0.11,<1', 'ipykernel>=7,<8'],
        'app': ['gradio>=5,<7'],                             # the page of tools/demo/app.py
        'tests': ['pytest>=9,<10', 'pytest-timeout>=2.4,<3', 'pytest-xdist>=3.8,<4', 'onnx>=1.23,<2',
                  'onnxruntime>=1.32,<2', 'onnxscript>=0.7.2,<0.8', 'torchao>=0.18,<0.19'],
    },
    cmdclass=dict(build_py=BuildWithMim, bdist_wheel=WheelWithMim, develop=DevelopWithMim, sdist=SourceWithMim),
    zip_safe=False,
)
