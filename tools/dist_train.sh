#!/usr/bin/env bash
# Train on several GPUs (or CPU processes).   bash tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several machines: the same command on each, with NNODES, NODE_RANK and MASTER_ADDR set.
if [ $# -lt 2 ]; then
    echo 'usage: dist_train.sh CONFIG GPUS [options of tools/train.py]' >&2
    exit 2
fi
exec bash "$(dirname "$0")/dist.sh" "$2" train.py "$1" --launcher pytorch "${@:3}"
