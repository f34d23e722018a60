"""tools/offline_wheels.sh with a stand-in for pip: what it asks for, and one line for what is wrong."""
import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'tools' / 'offline_wheels.sh'
# Writes what pip would: a wheel, or the source of mmcv; `FAILS` names a package that the index lacks.
PIP = r'''#!/bin/bash
echo "$*" >>"$CALLS"
folder='' name=${@: -4:1}
while [ $# -gt 0 ]; do
    case $1 in --dest | --wheel-dir) folder=$2; name=$3 ;; esac
    shift
done
[ "$name" != "$FAILS" ] || { echo "ERROR: No matching distribution found for $name"; exit 1; }
case $name in
onedl-mmcv) touch "$folder/onedl_mmcv-2.3.6.tar.gz" ;;
*) head -c "${BYTES:-10}" /dev/zero >"$folder/${name//-/_}-1-py3-none-${KIND:-any}.whl" ;;
esac
'''


@pytest.fixture
def collect(tmp_path):
    pip = tmp_path / 'python'
    pip.write_text(PIP)
    pip.chmod(0o755)

    def collect(*arguments, **steering):
        return subprocess.run(
            ['bash', SCRIPT, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True,
            env=dict(os.environ, PYTHON=str(pip), CALLS=str(tmp_path / 'calls'), **steering))
    return collect


FOR = ('--python', '3.12', '--torch', '2.11')


def test_what_it_collects(collect, tmp_path):
    folder = tmp_path / 'a folder'
    done = collect(folder, *FOR)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in folder.iterdir()}
    assert {'onedl_mmcv-2.3.6.tar.gz', 'machine.txt', 'onedl_mmdetection-1-py3-none-any.whl'} <= names
    assert (folder / 'machine.txt').read_text() == 'python 3.12 torch 2.11\n'
    calls = (tmp_path / 'calls').read_text().splitlines()
    assert all('--no-deps --constraint' in call for call in calls)
    assert sum('--python-version 3.12' in call for call in calls) == len(calls) - 4
    assert not any(f' {name} ' in f'{call} ' for call in calls for name in ('torch', 'torchvision', 'numpy', 'timm'))
    again = collect(folder, *FOR)                                       # the folder is its own
    assert again.returncode == 0 and {path.name for path in folder.iterdir()} == names


@pytest.mark.parametrize('arguments, message', [
    ([], 'name the folder'),
    (['new'], '--python and --torch say what the other machine has'),
    (['new', '--python', '3.12'], '--python and --torch say what the other machine has'),
    (['new', '--python', 'three', '--torch', '2.11'], "--python takes a version such as 3.12 or 2.11, not 'three'"),
    (['new', '--python', '3.12', '--torch'], "--torch takes a version such as 3.12 or 2.11, not ''"),
    (['new', 'newer', *FOR], 'one folder is taken, and new and newer are given'),
    (['new', *FOR, '--platform', 'arm'], 'unknown option --platform'),
    (['/proc/1/wheels', *FOR], '/proc/1/wheels cannot be written'),
    (['other', *FOR], 'other holds other files: name a new folder'),
])
def test_a_wrong_argument_is_one_line(collect, tmp_path, arguments, message):
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'work.txt').touch()
    done = collect(*arguments)
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert done.stderr.startswith('offline_wheels: ') and message in done.stderr
    assert (tmp_path / 'other' / 'work.txt').exists() and not (tmp_path / 'calls').exists()


@pytest.mark.parametrize('steering, message', [
    (dict(FAILS='addict'), 'pip fetched no addict; check network and proxy'),
    (dict(KIND='linux_x86_64'), 'onedl-mmdetection holds compiled code'),
    (dict(BYTES='3000000'), 'and 60 are meant to be carried'),
])
def test_what_fails_on_the_way(collect, steering, message):
    done = collect('new', *FOR, **steering)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
