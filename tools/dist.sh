#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share.   bash tools/dist.sh GPUS train.py|test.py [its arguments]
set -eu
tools=$(cd "$(dirname "$0")" && pwd)
gpus=$1 script=$2
shift 2

PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$tools/$script" "$@"
