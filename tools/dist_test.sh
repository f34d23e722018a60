#!/usr/bin/env bash
# Test on several GPUs (or CPU processes).   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# Several machines: the same command on each, with NNODES, NODE_RANK and MASTER_ADDR set.
set -eu
if [ $# -lt 3 ]; then
    echo 'usage: dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]' >&2
    exit 2
fi
tools=$(cd "$(dirname "$0")" && pwd)

PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$tools/test.py" "$1" "$2" --launcher pytorch "${@:4}"
