#!/usr/bin/env bash
# Set up .venv, then run the demo.   bash tools/quickstart.sh [options of tools/demo/run.py]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
bash "$root/tools/setup_env.sh"
exec "$root/.venv/bin/python" "$root/tools/demo/run.py" "$@"
