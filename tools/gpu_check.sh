#!/usr/bin/env bash
# Check e3va on a GPU in 9 minutes, and write rows and a page.   bash tools/gpu_check.sh OUT [options]
#     --only PART        environment, tests, figures or training alone; several times for several
#     --device cpu       the same on a CPU, reduced: small trunks and images, what a card alone can tell left out
#     --wheels FOLDER    what tools/offline_wheels.sh has collected: sets up without a network
#     --seconds N        when all must be over; what does not fit in is listed as not run (default: 540)
#     --weights FOLDER   where tools/demo/prepare.py kept its data (default: ~/.cache/e3va): part of the training
# Where the stack is there (.venv, else python3, or $PYTHON), nothing is installed. OUT gets at most eight files.
set -eu
began=$(date +%s)
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$tools/.." && pwd)
# shellcheck source=tools/gpu_check/set_up.sh
. "$tools/gpu_check/set_up.sh"

usage='usage: gpu_check.sh OUT [--only PART] [--device cpu] [--wheels FOLDER] [--seconds N] [--weights FOLDER]'
stop() {
    echo "gpu_check: $*" >&2
    exit 2
}

out='' device=cuda wheels='' seconds=540 weights='' only=()
while [ $# -gt 0 ]; do
    case $1 in
    --only | --device | --wheels | --seconds | --weights)
        [ $# -gt 1 ] || stop "$1 needs a value; $usage"
        case $1=$2 in
        --only=environment | --only=tests | --only=figures | --only=training) only+=("$2") ;;
        --only=*) stop "--only takes environment, tests, figures or training, not $2" ;;
        --device=cpu | --device=cuda) device=$2 ;;
        --device=*) stop "--device takes cuda or cpu, not $2" ;;
        --wheels=*) [ -e "$2/machine.txt" ] || stop "--wheels $2 is no folder of tools/offline_wheels.sh"; wheels=$2 ;;
        --weights=*) [ -d "$2" ] || stop "--weights $2 is no folder"; weights=$2 ;;
        --seconds=*) [[ $2 =~ ^[1-9][0-9]*$ ]] || stop "--seconds takes a whole number above 0, not $2"; seconds=$2 ;;
        esac
        shift ;;
    -*) stop "unknown option $1; $usage" ;;
    *) [ -z "$out" ] || stop "one OUT is taken, and $out and $1 are given"; out=$1 ;;
    esac
    shift
done
[ -n "$out" ] || stop "name a folder for rows and page; $usage"
mkdir -p "$out" 2>/dev/null && [ -w "$out" ] || stop "$out cannot be written"
[ "$device" = cuda ] || export CUDA_VISIBLE_DEVICES=''    # a card that is there is not to be found
[ -z "$weights" ] || export E3VA_CACHE=$weights

set_up "$root" "$wheels" "$out/setup.log"    # leaves the interpreter in $python
if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    stop 'torch finds no CUDA device here; --device cpu checks what a CPU can tell'
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "$python" "$tools/gpu_check/run.py" "$out" --device "$device" --seconds "$seconds" --began "$began" \
    ${only[@]+--only "${only[@]}"}
