#!/usr/bin/env bash
# Set up .venv, then run the tests.   bash tools/run_tests.sh [pytest options, paths from the project's root]
set -eu
cd "$(dirname "$0")/.."
bash tools/setup_env.sh
# A process a core, up to four (2 GB each); the tests of a file stay together, they may share what they have built.
workers=$(nproc)
[ "$workers" -le 4 ] || workers=4
export OMP_NUM_THREADS=1
# A test that ended its process is run once more, then no other.
exec .venv/bin/python -m pytest --numprocesses "$workers" --max-worker-restart 1 --dist loadfile "$@"
