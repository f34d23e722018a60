#!/usr/bin/env bash
# What slurm_train.sh and slurm_test.sh share.   bash tools/slurm.sh PARTITION JOB_NAME train.py|test.py [its arguments]
# From the environment: GPUS=8, GPUS_PER_NODE=8, CPUS_PER_TASK=5, and SRUN_ARGS, which is split into words on purpose.
set -eu
tools=$(cd "$(dirname "$0")" && pwd)
partition=$1 job=$2 script=$3
shift 3

PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" exec srun -p "$partition" \
    --job-name="$job" \
    --gres=gpu:"${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$tools/$script" "$@"
