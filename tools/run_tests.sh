#!/usr/bin/env bash
# Set up .venv, then run the tests.   bash tools/run_tests.sh [pytest options, paths from the project's root]
set -eu
cd "$(dirname "$0")/.."
bash tools/setup_env.sh
exec .venv/bin/python -m pytest "$@"
