#!/usr/bin/env bash
# Test on several GPUs (or CPU processes).   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# Several machines: the same command on each, with NNODES, NODE_RANK and MASTER_ADDR set.
if [ $# -lt 3 ]; then
    echo 'usage: dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]' >&2
    exit 2
fi
exec bash "$(dirname "$0")/dist.sh" "$3" test.py "$1" "$2" --launcher pytorch "${@:4}"
