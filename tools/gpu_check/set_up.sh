#!/usr/bin/env bash
# Find a Python with the stack, or make one: from a folder of wheels, else from the package index. Read by gpu_check.sh.

modules='torch torchvision mmengine mmcv._ext mmdet mmseg mmpretrain imgaug timm cv2 scipy matplotlib safetensors pytest rich'

# lacking PYTHON: the modules that it does not find. Of them it imports mmcv alone, in which the operators lie.
lacking() {
    "$1" - $modules <<'END' 2>/dev/null || echo "$modules"
import sys
from importlib.util import find_spec


def there(name):
    try:
        return find_spec(name) is not None
    except ImportError:
        return False


print(*[name for name in sys.argv[1:] if not there(name)])
END
}

# set_up ROOT WHEELS LOG: leaves the interpreter in $python.
set_up() {
    local root=$1 wheels=$2 log=$3 made=$1/work_dirs/gpu_check/venv candidate
    for candidate in "${PYTHON:-}" "$root/.venv/bin/python" "$made/bin/python" python3; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
        if [ -z "$(lacking "$candidate")" ]; then
            python=$candidate
            echo "The stack is there: $candidate"
            return
        fi
    done
    if [ -n "$wheels" ]; then
        python=${PYTHON:-python3}
        offline "$root" "$(cd "$wheels" && pwd)" "$made" "$log"
        return
    fi
    echo 'The stack is not there: tools/setup_env.sh makes it (minutes, and a network)'
    bash "$root/tools/setup_env.sh" || stop 'no set-up without a network; there: --wheels FOLDER of offline_wheels.sh'
    python=$root/.venv/bin/python
}

# offline ROOT WHEELS MADE LOG: a virtual environment over all that $python has, with the wheels and an mmcv built here.
offline() {
    local root=$1 wheels=$2 made=$3 log=$4 beside found missing wanted torch
    read -r _ wanted _ torch <"$wheels/machine.txt"
    "$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$wanted')" ||
        stop "the wheels are for Python $wanted, and this is $("$python" -V): collect others, or name it by PYTHON=..."
    echo "Setting up $made from $wheels (log: $log)"
    : >"$log"
    rm -rf "$made"
    "$python" -m venv --without-pip "$made" >>"$log" 2>&1 || failed 'make a virtual environment' "$log"
    # --system-site-packages would show what the interpreter has, not what the environment has that it is of.
    beside=$("$python" -c 'import site, sysconfig; print(sysconfig.get_path("platlib"), *site.getsitepackages(), sep="\n")')
    sort -u <<<"$beside" | sed "s/.*/import site; site.addsitedir('&')/" \
        >"$("$made/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/machine.pth"
    export PATH="$made/bin:$(dirname "$("$python" -c 'import sys; print(sys.executable)')"):$PATH"
    python=$made/bin/python
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$wheels PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
    "$python" -m pip install --no-deps "$wheels"/*.whl >>"$log" 2>&1 || failed 'install the wheels' "$log"
    found=$("$python" -c 'import torch; print(torch.__version__)')
    [[ $found = "$torch".* ]] || echo "The wheels were collected for torch $torch, and this is $found: going on"
    build_mmcv "$root" "$log"
    missing=$(lacking "$python")
    [ -z "$missing" ] || stop "this machine lacks $missing, which the wheels do not hold: install them there"
    echo "Set up in $(($(date +%s) - began)) s"
}

# mmcv's operators for this card alone, on all cores; where that fails or takes too long, those for a CPU.
build_mmcv() {
    local root=$1 log=$2 arch
    arch=$("$python" -c 'from torch import cuda
if cuda.is_available(): print("%d.%d" % cuda.get_device_capability())')
    if [ -n "$arch" ]; then
        echo "mmcv's operators for a card of capability $arch, on all cores: 4 minutes at most"
        TORCH_CUDA_ARCH_LIST=$arch build 240 "$root" "$log" && return
        echo "It did not compile in 4 minutes; detectors will not run on the card. The last lines of $log:"
        tail -n 5 "$log"
    fi
    echo "mmcv's operators for the CPU, on all cores"
    CUDA_VISIBLE_DEVICES='' build 1200 "$root" "$log" ||
        failed "compile mmcv's operators" "$log"
}

# build SECONDS ROOT LOG: the wheel for what this environment shows, installed.
build() {
    local kept
    kept=$("$python" "$2/tools/build_mmcv.py" --quick --where)
    compgen -G "$kept/onedl_mmcv-*.whl" >/dev/null ||
        timeout "$1" "$python" "$2/tools/build_mmcv.py" --quick --constraint "$2/tools/constraints.txt" >>"$3" 2>&1 ||
        return
    "$python" -m pip install --no-deps --force-reinstall --find-links "$kept" --only-binary onedl-mmcv onedl-mmcv \
        >>"$3" 2>&1 && "$python" -c 'import mmcv.ops' >>"$3" 2>&1
}

failed() {
    tail -n 10 "$2" >&2
    stop "failed: $1. Log: $2"
}
