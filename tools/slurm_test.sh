#!/usr/bin/env bash
# Test under Slurm.   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#     bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
if [ $# -lt 4 ]; then
    echo 'usage: slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]' >&2
    exit 2
fi
exec bash "$(dirname "$0")/slurm.sh" "$1" "$2" test.py "$3" "$4" --launcher=slurm "${@:5}"
