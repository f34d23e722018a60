#!/usr/bin/env bash
# Make .venv and install the tested stack into it: 322 s on two cores that ran tests beside it; a kept wheel of mmcv saves
# half of it. Versions: tools/constraints.txt. Called by quickstart.sh and run_tests.sh.
# Safe to interrupt and to repeat: .venv/steps lists the finished steps, .venv/setup.log holds the output of the last.
# PYTHON=/path/to/python3.11 chooses the interpreter; a torch that is in .venv already is kept.
set -u
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python
packages=$venv/lib/python3.11/site-packages
log=$venv/setup.log
steps=$venv/steps
constraints=$root/tools/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_USER=0

exec 3>&2 4>&1    # a step's output goes to the log; these stay the user's
stop() {
    echo "setup: $*" >&3
    exit 1
}
trap 'stop "interrupted; the next start goes on from here"' INT TERM

# ---- What the machine must have ------------------------------------------------------------------------------------

is_python_311() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

find_python() {
    local candidate names=(python3.11 python3 python) found=''
    [ -z "${PYTHON:-}" ] || names=("$PYTHON")
    for candidate in "${names[@]}"; do
        base=$(command -v "$candidate") || continue
        is_python_311 "$base" && return
        found+=" $("$base" -c 'import platform; print(platform.python_version())' 2>/dev/null)"
    done
    stop "Python 3.11 is needed, and none of these is one: ${names[*]} (found:${found:- none});" \
        'install it (apt install python3.11-venv python3.11-dev; where apt has none, uv python install 3.11 or' \
        'conda create -n e3va python=3.11) or name it with PYTHON=/path/to/python3.11'
}

free_gb() {
    df -Pk "$root" | awk 'NR == 2 { print int($4 / 1048576) }'
}

check_machine() {
    local include
    find_python
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        stop "$base has no venv module: install it (apt install python3.11-venv)"
    [ ! -e "$python" ] || is_python_311 "$python" || stop "$venv is not of Python 3.11: move it away and start again"
    if ! compgen -G "$packages/mmcv/_ext*" >/dev/null; then
        echo '#include <vector>' | "${CXX:-c++}" -x c++ -std=c++17 -fsyntax-only - 2>/dev/null ||
            stop "a C++17 compiler is needed, and ${CXX:-c++} is none: install one (apt install g++)"
        include=$("$base" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
        [ -e "$include/Python.h" ] ||
            stop "$base has no headers ($include/Python.h): install them (apt install python3.11-dev)"
        [ "$(free_gb)" -ge 6 ] ||
            stop "6 GB of free disk are needed, and $root has $(free_gb) GB: make room and start again"
    fi
}

# ---- How a step runs -----------------------------------------------------------------------------------------------

# step MESSAGE COMMAND...: run the command, unless this line of .venv/steps says that it was done.
# A changed command is run again, and so are the steps after it, which were built on it.
step() {
    local message=$1 began=$SECONDS
    shift
    number=$((number + 1))
    [ "$(sed -n "${number}p" "$steps" 2>/dev/null)" = "$*" ] && return
    if [ -z "$base" ]; then
        check_machine
        cores=${MAX_JOBS:-$(nproc)}    # pip takes 150 s, a core would compile for 200 s
        echo "Setting up $venv: about $(((209 + 200 / cores) / 60)) min on $cores cores when nothing is there yet" \
            "(details: $log)"
        mkdir -p "$venv" && touch "$steps" || stop "$venv cannot be written"
    fi
    echo "[$number/9] $message"
    sed -i "$number,\$d" "$steps"
    "$@" >"$log" 2>&1 || explain "$message"
    echo "$*" >>"$steps"
    echo "      done in $((SECONDS - began)) s"
}

explain() {
    if grep -q 'No space left on device' "$log" || [ "$(free_gb)" -eq 0 ]; then    # a full disk may empty the log, too
        stop "no space is left on the disk ($1): make room and start again. Log: $log"
    elif tail -n 5 "$log" | grep -qE 'ConnectionError|Timeout|ProxyError|SSLError|No matching distribution'; then
        stop "pip gets no answer or no such package from its index ($1): check network and proxy. Log: $log"
    fi
    tail -n 10 "$log" >&2
    stop "failed: $1. Log: $log"
}

pip_install() {
    local info
    # pip writes INSTALLER when a package is complete: without it an earlier start was interrupted there.
    for info in "$packages"/*.dist-info; do
        [ -e "$info/INSTALLER" ] || rm -rf "$info"
    done
    PATH=$venv/bin:$PATH "$python" -m pip install --constraint "$constraints" "$@"
}

# ---- The steps -----------------------------------------------------------------------------------------------------

make_venv() {
    is_python_311 "$python" || rm -f "$venv"/bin/python*    # links to a Python that is gone
    "$base" -m venv "$venv"
}

# A GPU is used where mmcv's operators can be compiled for it; anywhere else the CPU build saves several GB. It is
# looked for where pip is configured to look, then at PyTorch's; the index's own build runs on a CPU, too.
install_torch() {
    local torch=torch==$1 torchvision=torchvision==$2
    "$python" -c 'import torch, importlib.metadata as m; m.version("torch"); m.version("torchvision")' && return
    if nvidia-smi && command -v nvcc; then
        pip_install "$torch" "$torchvision"
    else
        pip_install "$torch+cpu" "$torchvision" ||
            pip_install "$torch+cpu" "$torchvision+cpu" --extra-index-url https://download.pytorch.org/whl/cpu ||
            pip_install "$torch" "$torchvision"
    fi
}

# The wheel of an earlier set-up for the same torch, else one that is built now. A wheel may still not load (a cache
# that several machines share): then it is built again.
install_mmcv() {
    local kept wheel
    kept=$("$python" "$root/tools/build_mmcv.py" --where) || return
    wheel=(--only-binary "$1" --find-links "$kept" "$1")
    pip_install "${wheel[@]}" && "$python" -c 'import mmcv.ops' && return
    PATH=$venv/bin:$PATH "$python" "$root/tools/build_mmcv.py" --constraint "$constraints" >&4 &&
        pip_install --force-reinstall --no-deps "${wheel[@]}" && pip_install "${wheel[@]}" &&
        "$python" -c 'import mmcv.ops'
}

# PyPI's torchvision is the GPU build: beside a CPU torch its library does not load, and neither does what imports it.
install_e3va() {
    pip_install --no-deps --no-build-isolation --editable "$1" || return
    rm -f "$packages"/torchvision_first.*
    (cd / && "$python" -c 'import timm') && return                # as it imports torchvision
    cp "$1/tools/misc/torchvision_first.py" "$packages" &&
        echo 'import torchvision_first' >"$packages/torchvision_first.pth"
}

check_imports() {
    (cd / && "$python" -c 'import timm, e3va') || return
    (cd / && "$python" -c 'import e3va, mmcv.ops, mmdet.apis, mmseg.apis, mmpretrain, timm, segment_anything, onnx, pytest, plotly' &&
        "$python" -c 'import e3va, sys; sys.path.append(sys.argv[1]); import peft' "$venv/peft")
}

if command -v flock >/dev/null; then
    exec 9<"${BASH_SOURCE[0]}"
    flock -n 9 || { echo 'Another set-up of this folder is running: waiting for it'; flock 9; }
fi
number=0
base=
"$python" -c 'pass' 2>/dev/null || rm -f "$steps"
step 'make the virtual environment (10 s)' make_venv "$root" "$(cksum <"$constraints")"
step 'install torch (20 s)' install_torch 2.13.0 0.28.0
step 'install numpy, opencv and build tools (15 s)' \
    pip_install numpy opencv-python onedl-mmengine psutil ninja wheel setuptools
step "install mmcv and its operators (20 s where an earlier set-up has kept them)" install_mmcv onedl-mmcv
step 'install mmdetection, mmsegmentation, mmpretrain, timm and test tools (1 min)' \
    pip_install onedl-mmdetection onedl-mmsegmentation onedl-mmpretrain timm segment-anything safetensors rich matplotlib \
    pytest pytest-timeout pytest-xdist onnx onnxruntime onnxscript torchao
# HF PEFT, which tests compare with, stays out of the other packages' sight: where transformers is found, mmengine imports
# it at every start, and mmpretrain does without its multi-modal models.
step 'install HF PEFT into a folder of its own, .venv/peft, for tests (10 s)' \
    pip_install --no-deps --upgrade --target "$venv/peft" peft transformers accelerate tokenizers
step "install what report, site and notebook are made with: plotly, mkdocs, Jupyter's kernel (15 s)" \
    pip_install plotly mkdocs-material mkdocstrings-python nbclient ipykernel
step 'install e3va (10 s)' install_e3va "$root"
step 'check that everything imports (20 s)' check_imports
echo "$venv is ready"
