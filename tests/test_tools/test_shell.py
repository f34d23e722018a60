"""The shell scripts, with stand-ins for Python, pip, the compiler, df and srun at the front of PATH."""
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'

# The machine's Python and, copied by `-m venv`, the environment's; the tests steer it by environment variables.
PYTHON = r'''#!/bin/bash
case "$*" in
*version_info*) [ "$LACKS" != version ] ;;
*python_version*) echo 3.12.1 ;;
*'import ensurepip'*) [ "$LACKS" != venv ] ;;
*sysconfig*) [ "$LACKS" = headers ] && echo /nowhere || echo "$STAND_INS" ;;
'-m venv '*) mkdir -p "$3/bin" && cp "$STAND_INS/python3.11" "$3/bin/python" ;;
'-m pip '*)
    echo "$*" >>"$STAND_INS/pip_calls"
    [[ -z $PIP_HANGS_AT || "$*" != *"$PIP_HANGS_AT"* ]] || { touch "$STAND_INS/hangs"; sleep 60; }
    # a wheel of mmcv is where an earlier build has left it
    [[ "$*" != *'--only-binary onedl-mmcv'* || -e "$STAND_INS/kept" ]] || { echo 'No matching distribution'; exit 1; }
    [[ -z $PIP_FAILS_AT || "$*" != *"$PIP_FAILS_AT"* ]] || { echo "$PIP_SAYS"; exit 1; } ;;
*'import torch'*) [ -n "$HAS_TORCH" ] ;;
*'import mmcv.ops') [[ "$LACKS" != operators || -e "$STAND_INS/built" ]] ;;
*'build_mmcv.py --where') echo "$STAND_INS/kept" ;;
*build_mmcv.py*)
    [ -z "$BUILD_FAILS" ] || { printf 'error: %s\n' 1 2 3 4 5 >&2; exit 1; }
    echo '      built in 0 min'; touch "$STAND_INS/kept" "$STAND_INS/built" ;;
*run.py*) echo "demo: ${*:2}"; exit 7 ;;
'-m pytest'*) echo "tests: ${*:3}"; exit 5 ;;
esac
'''


def stand_in(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path):
    """A clone that holds only the set-up (its path has a space), on a machine that has what it needs."""
    root = tmp_path / 'a clone'
    (root / 'tools' / 'misc').mkdir(parents=True)
    for name in ('setup_env.sh', 'build_mmcv.py', 'constraints.txt', 'quickstart.sh', 'run_tests.sh',
                 'misc/torchvision_first.py'):
        shutil.copy(TOOLS / name, root / 'tools' / name)
    (root / 'setup.py').touch()
    machine = tmp_path / 'machine'
    machine.mkdir()
    (machine / 'Python.h').touch()
    for name in ('python3.11', 'python3', 'python'):
        stand_in(machine / name, PYTHON)
    stand_in(machine / 'c++', '#!/bin/bash\n[ "$LACKS" != compiler ]\n')
    stand_in(machine / 'nvidia-smi', '#!/bin/bash\nfalse\n')
    stand_in(machine / 'df', '#!/bin/bash\necho Filesystem; echo disk 9 9 ${FREE_KIB:-99999999} 9% /\n')
    return root


def environment(root, **steering):
    kept = {name: value for name, value in os.environ.items() if name not in ('CXX', 'PYTHON', 'MAX_JOBS')}
    machine = root.parent / 'machine'
    return dict(kept, PATH=f'{machine}:/usr/bin:/bin', STAND_INS=str(machine), **steering)


def start(root, script='setup_env.sh', *arguments, **steering):
    return subprocess.run(['bash', root / 'tools' / script, *arguments], env=environment(root, **steering), cwd='/',
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)


def pip_calls(root):
    """What pip was asked for since the last call of this function."""
    path = root.parent / 'machine' / 'pip_calls'
    calls = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return calls


def test_set_up_runs_every_step_once(clone):
    first = start(clone)
    assert first.returncode == 0, first.stderr
    assert re.findall(r'^\[(\d)/9\]', first.stdout, re.M) == list('123456789')
    calls = pip_calls(clone)
    assert all(f'--constraint {clone}/tools/constraints.txt' in call for call in calls)
    assert 'torch==2.13.0+cpu' in calls[0]
    assert f'--only-binary onedl-mmcv --find-links {clone.parent}/machine/kept onedl-mmcv' in calls[2]
    assert calls[-1].endswith(f'--no-deps --no-build-isolation --editable {clone}')

    began = time.monotonic()
    second = start(clone, LACKS='compiler', FREE_KIB='0')  # a ready environment needs none of it
    assert second.returncode == 0 and time.monotonic() - began < 15
    assert second.stdout == f'{clone}/.venv is ready\n' and not pip_calls(clone)


@pytest.mark.parametrize('steering, message', [
    (dict(LACKS='version'), 'Python 3.11 is needed'),
    (dict(LACKS='version', PYTHON='python3.10'), 'none of these is one: python3.10'),
    (dict(LACKS='version', PYTHON='python3'), 'python3 (found: 3.12.1); install it'),
    (dict(LACKS='venv'), 'has no venv module'),
    (dict(LACKS='compiler'), 'a C++17 compiler is needed, and c++ is none'),
    (dict(LACKS='headers'), '/nowhere/Python.h'),
    (dict(FREE_KIB='3145728'), '6 GB of free disk are needed'),
])
def test_a_machine_that_lacks_something_is_told_in_one_line(clone, steering, message):
    done = start(clone, **steering)
    assert done.returncode == 1 and not (clone / '.venv').exists()
    assert done.stderr.count('\n') == 1 and done.stderr.startswith('setup: ') and message in done.stderr


@pytest.mark.parametrize('said, message', [
    ('ERROR: No matching distribution found for numpy==2.2.6', 'check network and proxy'),
    ('OSError: [Errno 28] No space left on device', 'no space is left on the disk'),
    ('error: command c++ failed', 'failed: install numpy'),
])
def test_a_failing_step_is_named_and_the_next_start_goes_on_there(clone, said, message):
    done = start(clone, PIP_FAILS_AT='opencv-python', PIP_SAYS=said)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]
    assert f'{clone}/.venv/setup.log' in done.stderr and said in (clone / '.venv' / 'setup.log').read_text()
    pip_calls(clone)
    again = start(clone)
    assert again.returncode == 0 and re.findall(r'^\[(\d)/9\]', again.stdout, re.M) == list('3456789')


@pytest.mark.parametrize('kill', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_set_up_goes_on(clone, kill):
    command = ['bash', clone / 'tools' / 'setup_env.sh']
    # Tests that run in the background were told to ignore the interrupt, and would hand that on.
    running = subprocess.Popen(command, env=environment(clone, PIP_HANGS_AT='onedl-mmcv'), start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (clone.parent / 'machine' / 'hangs').exists():
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.05)
    os.killpg(running.pid, kill)
    _, said = running.communicate(timeout=30)
    assert running.returncode
    if kill != signal.SIGKILL:
        assert said == 'setup: interrupted; the next start goes on from here\n'
    # What pip leaves of a package that it had not finished must not count as installed.
    packages = clone / '.venv' / 'lib' / 'python3.11' / 'site-packages'
    for name, files in (('half', ('METADATA',)), ('whole', ('METADATA', 'INSTALLER'))):
        (packages / f'{name}.dist-info').mkdir(parents=True)
        for file in files:
            (packages / f'{name}.dist-info' / file).touch()
    pip_calls(clone)
    again = start(clone)
    assert again.returncode == 0 and re.findall(r'^\[(\d)/9\]', again.stdout, re.M) == list('456789')
    assert [path.name for path in packages.iterdir()] == ['whole.dist-info']


def test_two_starts_wait_for_each_other(clone):
    command = ['bash', clone / 'tools' / 'setup_env.sh']
    running = [subprocess.Popen(command, env=environment(clone), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum('[1/9]' in output for output in outputs) == 1
    assert sum('opencv-python' in call for call in pip_calls(clone)) == 1


def test_changed_versions_and_a_moved_clone_are_noticed(clone):
    start(clone)
    with open(clone / 'tools' / 'constraints.txt', 'a') as file:
        file.write('# changed\n')
    assert '[1/9]' in start(clone).stdout
    moved = clone.rename(clone.with_name('moved'))
    pip_calls(moved)
    assert start(moved).returncode == 0 and pip_calls(moved)[-1].endswith(f'--editable {moved}')


def test_an_existing_torch_is_kept(clone):
    assert start(clone, HAS_TORCH='1').returncode == 0
    assert not [call for call in pip_calls(clone) if 'torch==' in call]


def test_the_cpu_build_of_torch_is_looked_for_in_three_places(clone):
    assert start(clone, PIP_FAILS_AT='+cpu').returncode == 0
    calls = [call.partition('constraints.txt ')[2] for call in pip_calls(clone) if 'torch==' in call]
    assert calls == ['torch==2.13.0+cpu torchvision==0.28.0',
                     'torch==2.13.0+cpu torchvision==0.28.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu',
                     'torch==2.13.0 torchvision==0.28.0']


def test_mmcv_is_built_once_and_what_the_build_says_is_shown(clone):
    assert '      built in 0 min\n' in start(clone).stdout
    another = clone.with_name('another clone')
    shutil.copytree(clone, another, ignore=shutil.ignore_patterns('.venv'))
    assert 'built in' not in start(another).stdout


def test_a_kept_mmcv_that_does_not_load_is_built_again(clone):
    (clone.parent / 'machine' / 'kept').touch()
    done = start(clone, LACKS='operators')
    assert done.returncode == 0 and 'built in' in done.stdout
    assert [call for call in pip_calls(clone) if 'onedl-mmcv' in call and '--force-reinstall --no-deps' in call]


def test_a_failed_build_of_mmcv_is_an_error(clone):
    done = start(clone, BUILD_FAILS='1')
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith('setup: failed: install mmcv')


def test_quickstart_and_run_tests_set_up_and_pass_arguments_and_exit_code_on(clone):
    demo = start(clone, 'quickstart.sh', '--data', 'a folder')
    assert demo.returncode == 7 and demo.stdout.endswith('demo: --data a folder\n') and '[9/9]' in demo.stdout
    tests = start(clone, 'run_tests.sh', '-k', 'one')
    assert tests.returncode == 5 and tests.stdout.endswith(' --dist loadfile -k one\n')
    (clone / '.venv' / 'steps').unlink()
    assert start(clone, 'run_tests.sh', LACKS='compiler').returncode == 1


@pytest.mark.parametrize('script, arguments, expected', [
    ('dist_train.sh', ['a b.py', '2', '--amp'],
     'torch.distributed.run --nnodes=1 --node_rank=0 --master_addr=127.0.0.1 --master_port=29501 --nproc_per_node=2 '
     '{tools}/train.py|a b.py|--launcher|pytorch|--amp'),
    ('dist_test.sh', ['a.py', 'b.pth', '2', '--out', 'x'],
     'torch.distributed.run --nnodes=1 --node_rank=0 --master_addr=127.0.0.1 --master_port=29501 --nproc_per_node=2 '
     '{tools}/test.py|a.py|b.pth|--launcher|pytorch|--out|x'),
    ('slurm_train.sh', ['part', 'job', 'a.py', 'work dir', '--amp'],
     'part --job-name=job --gres=gpu:8 --ntasks=16 --ntasks-per-node=8 --cpus-per-task=5 --kill-on-bad-exit=1 -w n1 '
     'python -u {tools}/train.py|a.py|--work-dir=work dir|--launcher=slurm|--amp'),
    ('slurm_test.sh', ['part', 'job', 'a.py', 'b.pth'],
     'part --job-name=job --gres=gpu:8 --ntasks=16 --ntasks-per-node=8 --cpus-per-task=5 --kill-on-bad-exit=1 -w n1 '
     'python -u {tools}/test.py|a.py|b.pth|--launcher=slurm'),
])
def test_launchers(tmp_path, script, arguments, expected):
    for name in ('python', 'srun'):
        stand_in(tmp_path / name, "#!/bin/bash\nshift; printf '%s|' \"$@\"\n")
    steering = dict(os.environ, PATH=f'{tmp_path}:/usr/bin:/bin', PORT='29501', GPUS='16', SRUN_ARGS='-w n1')
    done = subprocess.run(['bash', TOOLS / script, *arguments], env=steering, capture_output=True, text=True)
    before, _, after = expected.format(tools=TOOLS).partition('|')
    assert done.stdout == before.replace(' ', '|') + '|' + after + '|', done.stderr
    missing = subprocess.run(['bash', TOOLS / script, 'only'], env=steering, capture_output=True, text=True)
    assert missing.returncode == 2 and missing.stderr.startswith(f'usage: {script} ')


def test_the_container_takes_the_torch_of_the_set_up():
    torch, torchvision = re.search(r'install_torch (\S+) (\S+)', (TOOLS / 'setup_env.sh').read_text()).groups()
    assert f'torch=={torch} torchvision=={torchvision}' in (TOOLS.parent / 'Dockerfile').read_text()
