#!/usr/bin/env bash
# Collect what a machine with a GPU and no network lacks.  bash tools/offline_wheels.sh FOLDER --python 3.12 --torch 2.11
# Into FOLDER go the packages of OpenMMLab and the small ones that they import, as wheels for that Python on Linux
# x86-64, and the source of mmcv, which tools/gpu_check.sh compiles there. What is large is taken from the machine: torch,
# torchvision, timm, numpy, scipy, opencv (headless or not), scikit-image, numba, matplotlib, pillow, pytest, ...
# Versions: tools/constraints.txt. It takes a minute, and PYTHON=/path/to/python3 chooses whose pip fetches.
set -eu
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
constraints=$tools/constraints.txt
python=${PYTHON:-python3}
most=60    # MiB
# Wheels are in the index for the first ones; of OpenMMLab's libraries it has only sources, which hold no compiled code.
wheels=(onedl-mmengine imaug pycocotools shapely torchao segment-anything addict ftfy importlib_metadata mat4py model-index
    modelindex ninja ordered-set platformdirs prettytable psutil setuptools termcolor terminaltables wcwidth wheel yapf
    zipp)
pure=(onedl-mmdetection onedl-mmsegmentation onedl-mmpretrain)
platforms=(manylinux_2_28_x86_64 manylinux_2_24_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64)

stop() {
    echo "offline_wheels: $*" >&3
    exit 2
}
exec 3>&2

folder='' version='' torch=''
while [ $# -gt 0 ]; do
    case $1 in
    --python | --torch)
        [[ "${2:-}" =~ ^[0-9]+\.[0-9]+$ ]] || stop "$1 takes a version such as 3.12 or 2.11, not '${2:-}'"
        [ "$1" = --python ] && version=$2 || torch=$2
        shift ;;
    -*) stop "unknown option $1; usage: offline_wheels.sh FOLDER --python 3.12 --torch 2.11" ;;
    *)
        [ -z "$folder" ] || stop "one folder is taken, and $folder and $1 are given"
        folder=$1 ;;
    esac
    shift
done
[ -n "$folder" ] || stop 'name the folder: offline_wheels.sh FOLDER --python 3.12 --torch 2.11'
[ -n "$version" ] && [ -n "$torch" ] ||
    stop '--python and --torch say what the other machine has; there: python3 -c "import sys, torch; print(sys.version, torch.__version__)"'
mkdir -p "$folder" 2>/dev/null && [ -w "$folder" ] || stop "$folder cannot be written"
if compgen -G "$folder/*" >/dev/null && [ ! -e "$folder/machine.txt" ]; then
    stop "$folder holds other files: name a new folder"
fi
rm -f "$folder"/*.whl "$folder"/*.tar.gz "$folder/machine.txt"    # two versions of a package would stop the set-up

log=$(mktemp)
trap 'rm -f "$log"' EXIT
fetch() {
    "$python" -m pip --disable-pip-version-check "$@" --no-deps --constraint "$constraints" >"$log" 2>&1 || {
        grep -E '^ERROR|[Ee]rror:' "$log" | head -n 3 >&2
        stop "pip fetched no ${*: -1}; check network and proxy"
    }
}
echo "Collecting $((${#wheels[@]} + ${#pure[@]} + 1)) packages for Python $version into $folder: about a minute"
for name in "${wheels[@]}"; do
    fetch download --only-binary=:all: --implementation cp --python-version "$version" \
        "${platforms[@]/#/--platform=}" --dest "$folder" "$name"
done
for name in "${pure[@]}"; do
    fetch wheel --wheel-dir "$folder" "$name"
    compgen -G "$folder/${name//-/_}*-none-any.whl" >/dev/null || stop "$name holds compiled code: it fits one Python alone"
done
# Its set-up runs for its name and version alone: without torch it leaves the operators out.
fetch download --no-binary onedl-mmcv --dest "$folder" onedl-mmcv
compgen -G "$folder/onedl_mmcv-*.tar.gz" >/dev/null || stop 'the index has no source of onedl-mmcv'
size=$(du -sm "$folder" | cut -f1)
[ "$size" -le "$most" ] || stop "$folder has $size MiB, and $most are meant to be carried"
echo "python $version torch $torch" >"$folder/machine.txt"
echo "$folder has $size MiB. There: bash tools/gpu_check.sh OUT --wheels FOLDER"
