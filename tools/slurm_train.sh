#!/usr/bin/env bash
# Train under Slurm.   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#     bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
set -eu
if [ $# -lt 4 ]; then
    echo 'usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]' >&2
    exit 2
fi
tools=$(cd "$(dirname "$0")" && pwd)

# SRUN_ARGS is split into words on purpose.
PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" exec srun -p "$1" \
    --job-name="$2" \
    --gres=gpu:"${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$tools/train.py" "$3" --work-dir="$4" --launcher=slurm "${@:5}"
