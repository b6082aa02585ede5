#!/usr/bin/env bash
# Measure a machine with cards in 30 minutes: doctor, 200 steps on 1, 2, 4 and 8 cards in fp32 and
# AMP on generated images of 800x1333, evaluation, export and resume. Writes one JSON to send in.
# example: bash scripts/hw_check.sh     (to try it: DEVICE=cpu bash scripts/hw_check.sh --quick)
set -eu
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3 # a vendor's container brings its own
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m fcos_recipe.lab.hw_check "$@"
