#!/usr/bin/env bash
# Train under Slurm.   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#     bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
if [ $# -lt 4 ]; then
    echo 'usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]' >&2
    exit 2
fi
exec bash "$(dirname "$0")/slurm.sh" "$1" "$2" train.py "$3" --work-dir="$4" --launcher=slurm "${@:5}"
