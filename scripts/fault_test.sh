#!/usr/bin/env bash
# Disturb training runs (kills, hangs, full disk, damaged files), resume them, and compare them with
# undisturbed runs. The last line counts faults tried, survived and lost; exit 1 if any was lost.
# example: bash scripts/fault_test.sh --quick
set -eu
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m fcos_recipe.lab.faults.fault_test "$@"
