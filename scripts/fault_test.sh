#!/usr/bin/env bash
# Kill, starve and damage training runs, go on with them, compare them with undisturbed ones. The
# last line says how many faults were tried, survived and lost; exit 1 if any was lost.
# example: bash scripts/fault_test.sh --quick
set -eu
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m fcos_recipe.lab.faults.fault_test "$@"
